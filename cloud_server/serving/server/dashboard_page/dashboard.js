// Draws what /events sends once a second. No library: a chart is a handful of SVG paths.
"use strict";

const POINTS = 300; // five minutes
const HEIGHT = 190, LEFT = 40, BOTTOM = 18, TOP = 8;
const GAP_SECONDS = 3; // a longer silence breaks the curves
const REASONS = {
  too_late: "too late on arrival", evicted: "too late while waiting", overload: "overload", full: "queue full",
  unknown_task: "unknown task", bad_image: "bad image", moved: "task moved", draining: "draining", cancelled: "client left", failed: "failed",
};
const points = [];
const schedules = new Set();
let width = 400; // of the chart that is being drawn, pixels
let started = null, restarts = 0, messages = 0;

const CHARTS = {
  load: [["arriving", "--blue", (p) => p.recent.queries], ["answered", "--green", (p) => p.recent.answered]],
  utility: [["offered", "--grey", (p) => p.recent.utility_offered], ["earned", "--green", (p) => p.recent.utility_earned]],
  queue: [["waiting", "--violet", (p) => p.queued]],
  latency: [
    ["wait, half within", "--blue", (p) => p.recent.waiting_ms && p.recent.waiting_ms.p50],
    ["wait, 95 % within", "--blue", (p) => p.recent.waiting_ms && p.recent.waiting_ms.p95, true],
    ["batch, half within", "--orange", (p) => p.recent.batch_ms && p.recent.batch_ms.p50],
    ["batch, 95 % within", "--orange", (p) => p.recent.batch_ms && p.recent.batch_ms.p95, true],
  ],
};

function svg(tag, attributes, parent) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (parent) parent.append(element);
  return element;
}

function text(id, value) { document.getElementById(id).textContent = value; }

function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value >= 10000) return `${(value / 1000).toFixed(value >= 100000 ? 0 : 1)}k`;
  return value >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(value >= 10 ? 1 : 2);
}

function share(part, whole) { return whole > 0 ? `${(100 * part / whole).toFixed(1)} %` : "–"; }

function ago(seconds) {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

// Tokens added (> 0) or merged away (< 0) per layer, from the schedule's name: 0, -10, +4, +4a, m22x4-20x4-0x4, +4-10.
function delta(name) {
  const prompts = /^\+(\d+)/.exec(name), merged = name.replace(/^\+\d+a?/, "");
  let gone = 0;
  if (merged.startsWith("m")) {
    const runs = merged.slice(1).split("-").map((run) => run.split("x").map(Number));
    gone = runs.reduce((sum, [value, count]) => sum + value * count, 0) / runs.reduce((sum, [, count]) => sum + count, 0);
  } else if (merged) gone = -Number(merged);
  return (prompts ? Number(prompts[1]) : 0) - (gone || 0);
}

// Fewer tokens are warm, more are cool, the plain model is grey; the further, the stronger.
function tint(name) {
  const change = delta(name), dark = matchMedia("(prefers-color-scheme: dark)").matches;
  if (change === 0) return dark ? "#9aa3ab" : "#a9b1b8";
  const strength = Math.min(1, Math.abs(change) / (change < 0 ? 22 : 8));
  const light = dark ? 34 + 34 * strength : 80 - 38 * strength;
  return `hsl(${change < 0 ? 28 : 205} ${dark ? 75 : 82}% ${light}%)`;
}

// The smallest round number that is not below `value`.
function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((step) => step * power).find((top) => top >= value * 0.999);
}

function x(time, now) { return LEFT + (width - LEFT) * (1 - (now - time) / POINTS); }

function y(value, top) { return TOP + (HEIGHT - BOTTOM - TOP) * (1 - value / top); }

function frame(name, top, label) {
  const figure = document.getElementById(`chart-${name}`);
  let drawing = figure.querySelector(":scope > svg");
  if (!drawing) {
    drawing = svg("svg", { role: "img" }, figure);
    drawing.addEventListener("pointermove", (event) => pointed(name, drawing, event));
    drawing.addEventListener("pointerleave", () => hide(figure));
    const legend = document.createElement("div");
    legend.className = "legend";
    figure.append(legend);
  }
  // The drawing is as wide as its card, so that text is not stretched.
  width = drawing.clientWidth;
  drawing.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  drawing.setAttribute("aria-label", label);
  drawing.replaceChildren();
  for (const part of [0, 0.5, 1]) {
    const height = y(part * top, top);
    svg("line", { x1: LEFT, x2: width, y1: height, y2: height, class: "gridline" }, drawing);
    svg("text", { x: LEFT - 6, y: height + 4, "text-anchor": "end" }, drawing).textContent =
      name === "schedules" ? `${100 * part} %` : number(part * top);
  }
  for (const [minutes, anchor] of [[5, "start"], [2.5, "middle"], [0, "end"]]) {
    svg("text", { x: x(-60 * minutes, 0), y: HEIGHT - 3, "text-anchor": anchor }, drawing).textContent =
      minutes ? `${minutes} min ago` : "now";
  }
  return drawing;
}

// Pieces of a curve between silences, each a list of [time, value].
function pieces(value) {
  const found = [];
  let last = null;
  for (const point of points) {
    const here = value(point);
    if (here === null || here === undefined) { last = null; continue; }
    if (last === null || point.time - last > GAP_SECONDS) found.push([]);
    found[found.length - 1].push([point.time, here]);
    last = point.time;
  }
  return found;
}

function legend(name, entries) {
  const place = document.querySelector(`#chart-${name} .legend`);
  const key = JSON.stringify(entries);
  if (place.dataset.key === key) return;
  place.dataset.key = key;
  place.replaceChildren(...entries.map(([label, colour, dashed, filled]) => {
    const entry = document.createElement("span");
    const mark = svg("svg", { viewBox: "0 0 18 10", "aria-hidden": "true" });
    if (filled) svg("rect", { width: 18, height: 10, fill: colour, rx: 2 }, mark);
    else svg("line", { x1: 0, x2: 18, y1: 5, y2: 5, stroke: colour, "stroke-width": 2.5, class: dashed ? "dashed" : "" }, mark);
    entry.append(mark, label);
    return entry;
  }));
}

function curves(name, now) {
  const series = CHARTS[name];
  const highest = Math.max(0, ...points.flatMap((point) => series.map(([, , value]) => value(point) || 0)));
  const top = ceiling(highest);
  const latest = series.map(([label, , value]) => `${label} ${number(value(points[points.length - 1]))}`).join(", ");
  const drawing = frame(name, top, latest);
  for (const [, colour, value, dashed] of series) {
    for (const piece of pieces(value)) {
      const path = piece.map(([time, height], at) => `${at ? "L" : "M"}${x(time, now).toFixed(1)} ${y(height, top).toFixed(1)}`);
      svg("path", { d: path.join(""), class: `series${dashed ? " dashed" : ""}`, stroke: `var(${colour})` }, drawing);
    }
  }
  if (series.length > 1) legend(name, series.map(([label, colour, , dashed]) => [label, `var(${colour})`, dashed]));
}

function stacked(now) {
  const names = [...schedules].sort((a, b) => delta(a) - delta(b) || a.localeCompare(b));
  const drawing = frame("schedules", 1, names.join(", "));
  const total = (point) => Object.values(point.recent.schedules).reduce((sum, count) => sum + count, 0);
  const upTo = (point, place) => {
    const whole = total(point);
    if (!whole) return null;
    return names.slice(0, place).reduce((sum, name) => sum + (point.recent.schedules[name] || 0), 0) / whole;
  };
  names.forEach((name, place) => {
    const below = pieces((point) => upTo(point, place)), above = pieces((point) => upTo(point, place + 1));
    above.forEach((piece, at) => {
      const edge = [...piece, ...below[at].slice().reverse()];
      const path = edge.map(([time, height], step) => `${step ? "L" : "M"}${x(time, now).toFixed(1)} ${y(height, 1).toFixed(1)}`);
      svg("path", { d: `${path.join("")}Z`, fill: tint(name), "data-schedule": name }, drawing);
    });
  });
  legend("schedules", names.map((name) => [name, tint(name), false, true]));
}

function reasons(drops) {
  const place = document.getElementById("reasons");
  const entries = Object.entries(drops).filter(([, count]) => count > 0).sort((a, b) => b[1] - a[1]);
  if (!entries.length) {
    const none = document.createElement("span");
    none.className = "none";
    none.textContent = "none so far";
    place.replaceChildren(none);
    return;
  }
  place.replaceChildren(...entries.flatMap(([reason, count]) => {
    const label = document.createElement("span"), bar = document.createElement("div"), value = document.createElement("span");
    label.textContent = REASONS[reason] || reason;
    bar.className = "bar";
    bar.style.width = `${100 * count / entries[0][1]}%`;
    value.textContent = String(count);
    return [label, bar, value];
  }));
}

function pointed(name, drawing, event) {
  const figure = drawing.parentElement, box = drawing.getBoundingClientRect();
  const now = points.length ? points[points.length - 1].time : 0;
  const at = event.clientX - box.left;
  width = box.width;
  const time = now - POINTS * (1 - (at - LEFT) / (width - LEFT));
  const point = points.reduce((best, other) => (!best || Math.abs(other.time - time) < Math.abs(best.time - time) ? other : best), null);
  if (!point || Math.abs(point.time - time) > GAP_SECONDS) { hide(figure); return; }
  hide(figure);
  svg("line", { x1: x(point.time, now), x2: x(point.time, now), y1: TOP, y2: HEIGHT - BOTTOM, class: "cursor" }, drawing);
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.textContent = [`${Math.round(now - point.time)} s ago`, ...values(name, point)].join("\n");
  figure.append(tip);
}

function values(name, point) {
  if (name !== "schedules") return CHARTS[name].map(([label, , value]) => `${label} ${number(value(point))}`);
  const used = Object.entries(point.recent.schedules), whole = used.reduce((sum, [, count]) => sum + count, 0);
  return used.sort((a, b) => delta(a[0]) - delta(b[0])).map(([schedule, count]) => `${schedule} ${share(count, whole)}`);
}

function hide(figure) {
  for (const old of figure.querySelectorAll(".tip, .cursor")) old.remove();
}

function tiles(snapshot) {
  const { recent, totals } = snapshot;
  text("load", number(recent.queries));
  text("load-sub", `${number(totals.queries)} since the start`);
  text("share", share(recent.utility_earned, recent.utility_offered));
  text("share-sub", `${share(totals.utility_earned, totals.utility_offered)} since the start`);
  text("queue", number(snapshot.queued));
  text("queue-sub", recent.batch_size === null ? "no batches" : `batches of ${number(recent.batch_size)}`);
  text("drops", share(recent.dropped, recent.queries));
  text("drops-sub", `${share(totals.dropped, totals.queries)} since the start`);
  text("late", share(recent.answered_late, recent.answered));
  text("late-sub", `${share(totals.answered_late, totals.answered)} since the start`);
  text("wait", recent.waiting_ms ? number(recent.waiting_ms.p95) : "–");
  text("wait-sub", recent.batch_ms ? `then ${number(recent.batch_ms.p50)} ms in a batch` : "");
  const tasks = byTrunk(snapshot) || (snapshot.tasks.length ? snapshot.tasks.join(", ") : "no tasks");
  text("about", `policy ${snapshot.policy} · ${tasks} · up ${ago(snapshot.time - snapshot.started)}`);
}

function byTrunk({ trunks = {}, recent }) {
  const seconds = recent.trunks || {}, whole = Object.values(seconds).reduce((sum, one) => sum + one, 0);
  const entries = Object.entries(trunks).map(([trunk, tasks]) => {
    const used = whole ? `, ${share(seconds[trunk] || 0, whole)} of engine time` : "";
    return `${trunk}: ${tasks.join(", ")}${used}`;
  });
  return entries.join(" · ");
}

function state(name, words) {
  const place = document.getElementById("state");
  place.className = name;
  place.textContent = words;
  document.body.classList.toggle("stale", name === "lost");
}

function shown(snapshot) {
  if (started !== null && snapshot.started !== started) restarts += 1;
  started = snapshot.started;
  messages += 1;
  points.push(snapshot);
  while (points.length && points[0].time < snapshot.time - POINTS) points.shift();
  Object.keys(snapshot.recent.schedules).forEach((name) => schedules.add(name));
  tiles(snapshot);
  for (const name of Object.keys(CHARTS)) curves(name, snapshot.time);
  stacked(snapshot.time);
  reasons(snapshot.drops);
  if (snapshot.starting) state("starting", `starting: ${snapshot.starting}`);
  else state(snapshot.ready ? "live" : "draining", snapshot.ready ? "live" : "draining");
  document.body.dataset.messages = messages;
  document.body.dataset.restarts = restarts;
}

// A browser retries a broken stream, but gives up where it got an answer that is none; then we do.
function connect() {
  const source = new EventSource("events");
  source.onmessage = (event) => shown(JSON.parse(event.data));
  source.onerror = () => {
    state("lost", "no connection, trying again");
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 1000);
  };
}

connect();
