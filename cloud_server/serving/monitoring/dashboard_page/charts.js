// A chart is a handful of SVG paths; no library. A chart can be read with a pointer, and with the arrow keys.

import { age, ceiling, duration } from "./format.js";

const HEIGHT = 180, LEFT = 52, RIGHT = 8, BOTTOM = 20, TOP = 10;

export function svg(tag, attributes, parent) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (parent) parent.append(element);
  return element;
}

// Where things are drawn: as wide as the card, so that text is not stretched.
class Area {
  constructor(figure) {
    this.figure = figure;
    let drawing = figure.querySelector(":scope > svg");
    if (!drawing) {
      drawing = svg("svg", { role: "img", tabindex: "0" }, figure);
      const key = document.createElement("div");
      key.className = "legend";
      figure.append(key);
    }
    this.drawing = drawing;
    this.width = Math.max(160, drawing.clientWidth);
    drawing.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    drawing.replaceChildren();
  }

  x(share) { return LEFT + (this.width - LEFT - RIGHT) * share; }

  y(share) { return TOP + (HEIGHT - BOTTOM - TOP) * (1 - share); }

  grid(format, top) {
    for (const part of [0, 0.5, 1]) {
      svg("line", { x1: LEFT, x2: this.width - RIGHT, y1: this.y(part), y2: this.y(part), class: "gridline" }, this.drawing);
      this.text(LEFT - 6, this.y(part) + 4, "end", format(part * top));
    }
  }

  text(x, y, anchor, words, name = "") {
    svg("text", { x, y, "text-anchor": anchor, class: name }, this.drawing).textContent = words;
  }

  times(axis) {
    for (const [part, anchor] of [[0, "start"], [0.5, "middle"], [1, "end"]]) {
      this.text(this.x(part), HEIGHT - 4, anchor, part === 1 ? "now" : `${age(axis.length * (1 - part))} ago`);
    }
  }

  empty(words) { this.text(this.x(0.5), this.y(0.5) - 6, "middle", words, "empty"); }

  legend(entries) {
    const place = this.figure.querySelector(".legend"), key = JSON.stringify(entries);
    if (place.dataset.key === key) return;
    place.dataset.key = key;
    place.replaceChildren(...entries.map(([label, colour, style]) => {
      const entry = document.createElement("span");
      const mark = svg("svg", { viewBox: "0 0 18 10", "aria-hidden": "true" });
      if (style === "filled") svg("rect", { width: 18, height: 10, fill: colour, rx: 2 }, mark);
      else svg("line", { x1: 0, x2: 18, y1: 5, y2: 5, stroke: colour, "stroke-width": 2.5, class: style }, mark);
      entry.append(mark, label);
      return entry;
    }));
  }
}

// Pieces of a curve between silences, each a list of [place on the axis, value].
function pieces(axis, values) {
  const found = [];
  let last = null;
  axis.ends.forEach((end, at) => {
    const value = values[at], place = 1 - (axis.now - end) / axis.length;
    if (value === null || value === undefined || place < 0) { last = null; return; }
    if (last === null || end - last > 3 * axis.step + 0.5) found.push([]);
    found[found.length - 1].push([place, value]);
    last = end;
  });
  return found;
}

function path(points) {
  return points.map(([x, y], at) => `${at ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

function last(values) {
  for (let at = values.length - 1; at >= 0; at -= 1) if (values[at] !== null && values[at] !== undefined) return values[at];
  return null;
}

// axis: {ends, now, length, step}. series: {label, colour, style, values}. limit: {label, value}, a level to compare with.
export function curves(figure, axis, series, format, { top = null, round = ceiling, empty = "Nothing in this time.", limit = null } = {}) {
  const area = new Area(figure), drawn = series.map((one) => pieces(axis, one.values));
  const highest = Math.max(0, ...drawn.flat(2).map(([, value]) => value));
  const most = top || round(limit && highest > 0 ? Math.max(highest, Math.min(limit.value, 4 * highest)) : highest);
  area.grid(format, most);
  area.times(axis);
  if (!drawn.some((one) => one.length)) area.empty(empty);
  if (limit && limit.value <= most) {
    const height = area.y(limit.value / most);
    svg("line", { x1: LEFT, x2: area.width - RIGHT, y1: height, y2: height, class: "limit" }, area.drawing);
  }
  drawn.forEach((parts, at) => {
    const { colour, style = "" } = series[at];
    for (const piece of parts) {
      const points = piece.map(([place, value]) => [area.x(place), area.y(Math.min(value / most, 1))]);
      if (points.length === 1) svg("circle", { cx: points[0][0], cy: points[0][1], r: 2, fill: `var(${colour})` }, area.drawing);
      svg("path", { d: path(points), class: `series ${style}`, stroke: `var(${colour})` }, area.drawing);
    }
  });
  const entries = series.map(({ label, colour, style = "" }) => [label, `var(${colour})`, style]);
  if (limit && limit.value <= most) entries.push([`${limit.label} ${format(limit.value)}`, "var(--ink)", "limit"]);
  if (entries.length > 1) area.legend(entries);
  else area.legend([]);
  describe(area, series.map(({ label, values }) => `${label} ${format(last(values))}`).join(", "));
  readable(area, axis, (at) => series.map(({ label, values }) => `${label} ${format(values[at])}`));
}

// Shares of a whole, one upon the other. layers: {label, colour, values}.
export function stacked(figure, axis, layers, format, empty) {
  const area = new Area(figure);
  area.grid(format, 1);
  area.times(axis);
  const whole = axis.ends.map((_, at) => layers.reduce((sum, { values }) => sum + (values[at] || 0), 0));
  let below = whole.map((sum) => (sum > 0 ? 0 : null));
  if (!whole.some((sum) => sum > 0)) area.empty(empty);
  for (const { label, colour, values } of layers) {
    const above = below.map((height, at) => (height === null ? null : height + (values[at] || 0) / whole[at]));
    const lower = pieces(axis, below);
    pieces(axis, above).forEach((piece, at) => {
      const edge = [...piece, ...lower[at].slice().reverse()].map(([place, share]) => [area.x(place), area.y(share)]);
      svg("path", { d: `${path(edge)}Z`, fill: colour, "data-schedule": label }, area.drawing);
    });
    below = above;
  }
  area.legend(layers.map(({ label, colour }) => [label, colour, "filled"]));
  const shares = (at) => layers.filter(({ values }) => values[at]).map(({ label, values }) => `${label} ${format(values[at] / whole[at])}`);
  describe(area, shares(axis.ends.length - 1).join(", ") || empty);
  readable(area, axis, shares);
}

// points: [predicted, measured].
export function against(figure, points, format, empty) {
  // One batch that met a pause of the machine would press all others into a corner: it is drawn at the edge.
  const area = new Area(figure), ordered = points.flat().sort((a, b) => a - b);
  const top = ceiling(1.05 * (ordered[Math.floor(0.98 * (ordered.length - 1))] || 0)), within = (value) => Math.min(value / top, 1);
  if (!points.length) {
    area.empty(empty);
    area.legend([]);
    describe(area, empty);
    return;
  }
  area.grid(format, top);
  for (const [part, anchor] of [[0, "start"], [0.5, "middle"], [1, "end"]]) {
    area.text(area.x(part), HEIGHT - 4, anchor, part === 0.5 ? `predicted ${format(top / 2)}` : format(part * top));
  }
  svg("line", { x1: area.x(0), y1: area.y(0), x2: area.x(1), y2: area.y(1), class: "limit" }, area.drawing);
  for (const [predicted, measured] of points) {
    svg("circle", { cx: area.x(within(predicted)), cy: area.y(within(measured)), r: 3, class: "dot" }, area.drawing);
  }
  area.legend([["as predicted; above it a batch took longer", "var(--ink)", "limit"]]);
  describe(area, `${points.length} batches; above the line they took longer than predicted`);
}

function describe(area, words) {
  const name = area.figure.querySelector("figcaption").textContent;
  area.drawing.setAttribute("aria-label", `${name}: ${words}`);
  restore(area.figure);
}

// The row that a person looks at: {figure, age}, age in seconds, so that it moves with the curves.
let looked = null;
const readers = new Map();

function readable(area, axis, values) {
  const { figure, drawing } = area;
  if (!readers.has(figure)) {
    drawing.addEventListener("pointermove", (event) => {
      const reader = readers.get(figure), box = drawing.getBoundingClientRect();
      const place = (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT);
      show(figure, nearest(reader.axis, reader.axis.now - reader.axis.length * (1 - place)));
    });
    drawing.addEventListener("pointerleave", () => hide(figure));
    drawing.addEventListener("blur", () => hide(figure));
    drawing.addEventListener("keydown", (event) => {
      const { axis: mine } = readers.get(figure), rows = mine.ends.length;
      const step = { ArrowLeft: -1, ArrowRight: 1, Home: -rows, End: rows }[event.key];
      if (!step || !rows) return;
      event.preventDefault();
      const at = looked && looked.figure === figure ? mine.ends.indexOf(looked.end) : rows;
      const oldest = mine.ends.findIndex((end) => end >= mine.now - mine.length);
      show(figure, Math.max(oldest, Math.min(rows - 1, (at < 0 ? rows : at) + step)));
    });
  }
  readers.set(figure, { area, axis, values });
  restore(figure);
}

function restore(figure) {
  if (!looked || looked.figure !== figure || !readers.has(figure)) return;
  show(figure, readers.get(figure).axis.ends.indexOf(looked.end));
}

function nearest(axis, time) {
  let best = -1;
  axis.ends.forEach((end, at) => {
    if (best < 0 || Math.abs(end - time) < Math.abs(axis.ends[best] - time)) best = at;
  });
  return best >= 0 && Math.abs(axis.ends[best] - time) <= 3 * axis.step + 0.5 ? best : -1;
}

function show(figure, at) {
  hide(figure);
  const { area, axis, values } = readers.get(figure), end = axis.ends[at];
  if (end === undefined || end < axis.now - axis.length) return;
  looked = { figure, end };
  const place = area.x(1 - (axis.now - end) / axis.length);
  svg("line", { x1: place, x2: place, y1: TOP, y2: HEIGHT - BOTTOM, class: "cursor" }, area.drawing);
  const tip = document.createElement("div");
  tip.className = `tip${place > area.width / 2 ? " left" : ""}`;
  tip.setAttribute("role", "status");
  tip.textContent = [`${duration(axis.now - end)} ago`, ...values(at)].join("\n");
  figure.append(tip);
}

function hide(figure) {
  if (looked && looked.figure === figure) looked = null;
  for (const old of figure.querySelectorAll(".tip, .cursor")) old.remove();
}
