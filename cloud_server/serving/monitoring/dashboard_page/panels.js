// What is text: state, alarms, tiles, tables. Whatever comes from users is set as text, never as markup.

import { bytes, duration, milliseconds, number, percent, ratio } from "./format.js";

const REASONS = {
  too_late: "too late on arrival", evicted: "too late while waiting", overload: "overload", full: "queue full",
  unknown_task: "unknown task", bad_image: "bad image", moved: "task moved", loading: "trunk not loaded", draining: "draining", cancelled: "client left", failed: "failed",
};
const SEVERITIES = { critical: "Critical", warning: "Warning", info: "Note" };
const NOT_READY = {
  retiring: "Not ready: the server was told to end. It still answers, until balancers have noticed.",
  draining: "Not ready: the server is ending. It answers what it has accepted, and refuses the rest.",
};

export function text(id, value) {
  const place = document.getElementById(id);
  if (place.textContent !== value) place.textContent = value; // else a screen reader would say it again
}

function element(tag, name, words) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.textContent = words;
  return made;
}

export function state(name, words) {
  document.getElementById("state").className = name;
  text("state", words);
  document.body.classList.toggle("stale", name === "lost");
}

export function alarms(snapshot) {
  const entries = snapshot.alarms.map(({ severity, text: words, seconds, hold_seconds: hold, firing }) => (firing
    ? [severity, SEVERITIES[severity], words, seconds >= 1 ? `for ${duration(seconds)}` : ""]
    : ["pending", "Watch", words, `for ${duration(seconds)}; an alarm after ${duration(hold)}`]));
  if (NOT_READY[snapshot.state]) entries.unshift(["warning", "Warning", NOT_READY[snapshot.state], ""]);
  const list = document.getElementById("alarm-list");
  entries.forEach(([name, title, words, since], at) => {
    let item = list.children[at];
    if (!item) {
      item = document.createElement("li");
      item.append(element("b", "", ""), " ", element("span", "", ""), " ", element("span", "soft", ""));
      item.lastChild.setAttribute("aria-live", "off"); // it changes all the time
      list.append(item);
    }
    item.className = name;
    [title, words, since].forEach((part, place) => {
      if (item.children[place].textContent !== part) item.children[place].textContent = part;
    });
  });
  while (list.children.length > entries.length) list.lastChild.remove();
  document.getElementById("no-alarms").hidden = entries.length > 0 || snapshot.state === "starting";
}

export function start(starting) {
  document.getElementById("start").hidden = !starting;
  for (const id of ["tiles", "tasks", "controls", "engine", "about-figures"]) document.getElementById(id).hidden = Boolean(starting);
  for (const charts of document.querySelectorAll(".charts")) charts.hidden = Boolean(starting);
  if (!starting) return;
  text("start-doing", starting.doing);
  text("start-seconds", `${duration(starting.seconds || 0)} so far`);
  const part = document.getElementById("start-part");
  part.hidden = !starting.of;
  if (starting.of) { part.max = starting.of; part.value = starting.done; }
  document.getElementById("start-steps").replaceChildren(
    ...(starting.steps || []).map(({ doing, seconds }) => element("li", "", `${doing} (${duration(seconds)})`)),
  );
}

export function tiles(snapshot) {
  const { now, totals, memory, capacity } = snapshot, latency = now.latency_ms || {};
  text("load", number(now.queries));
  text("load-sub", `${number(totals.queries)} since the start, ${number(snapshot.queued)} waiting`);
  text("intime", ratio(Math.max(0, now.answered - now.late), Math.max(now.queries, now.answered)));
  text("intime-sub", now.queries + now.answered + now.dropped === 0 ? "no queries in ten seconds" : `late ${ratio(now.late, now.answered)}, not served ${ratio(now.dropped, Math.max(now.queries, now.dropped))}`);
  text("latency", milliseconds(latency.p95));
  text("latency-sub", now.latency_ms ? `p50 ${milliseconds(latency.p50)}, p99 ${milliseconds(latency.p99)}` : "no answers in the last minute");
  text("busy", percent(now.busy));
  text("busy-sub", now.batch_ms === null ? "no batches in the last minute" : `batches of ${number(now.batch_size)}, ${milliseconds(now.batch_ms)} each`);
  text("capacity", capacity ? number(capacity.most) : "–");
  text("capacity-sub", capacity ? `${number(capacity.accurate)} at the most accurate schedules` : "");
  text("share", ratio(now.earned, now.offered));
  text("share-sub", totals.offered ? `${ratio(totals.earned, totals.offered)} since the start` : "nothing offered yet");
  text("error", percent(now.error));
  text("error-sub", now.bias === null ? "no batches in the last minute" : bias(now.bias));
  text("memory", bytes(memory.used));
  text("memory-sub", `of ${bytes(memory.limit)}`);
  const version = snapshot.version ? `version ${snapshot.version} · ` : "";
  text("about", `${version}policy ${snapshot.policy} · up ${duration(snapshot.uptime)}`);
}

function bias(value) {
  const off = Math.abs(value - 1);
  if (off < 0.01) return "right on average";
  return `${percent(off)} too ${value > 1 ? "long" : "short"} on average`;
}

// columns: [title, numeric, value of a row]. Cells stay while the shape does, so that text can be selected and read aloud.
function table(id, columns, rows, empty) {
  const place = document.getElementById(id), body = place.tBodies[0], shape = `${rows.length} ${columns.map(([title]) => title)}`;
  if (place.dataset.shape !== shape) {
    place.dataset.shape = shape;
    place.tHead.replaceChildren(line(columns.map(([title, numeric]) => cell("th", "col", numeric, title))));
    body.replaceChildren(...rows.map(() => line(columns.map(([title, numeric], at) => {
      const made = at ? cell("td", "", numeric, "") : cell("th", "row", numeric, "");
      made.dataset.title = title;
      return made;
    }))));
    if (!rows.length) {
      const words = element("td", "soft", empty);
      words.colSpan = columns.length;
      body.append(line([words]));
    }
  }
  rows.forEach((row, at) => columns.forEach(([, , value], column) => {
    const words = value(row), there = body.rows[at].cells[column];
    if (there.textContent !== words) there.textContent = words;
  }));
}

function line(cells) {
  const made = document.createElement("tr");
  made.append(...cells);
  return made;
}

function cell(tag, scope, numeric, words) {
  const made = element(tag, numeric ? "number" : "", words);
  if (scope) made.scope = scope;
  return made;
}

export function tasks(snapshot) {
  const several = snapshot.trunks.length > 1;
  const percentile = (name) => ({ latency_ms: found }) => milliseconds(found && found[name]);
  table("task-table", [
    ["Task", false, ({ name }) => name],
    ["Version", true, ({ version }) => (version === null ? "–" : String(version))],
    ...(several ? [["Trunk", false, ({ trunk }) => trunk]] : []),
    ["Queries/s", true, ({ queries }) => number(queries)],
    ["p50", true, percentile("p50")],
    ["p95", true, percentile("p95")],
    ["p99", true, percentile("p99")],
    ["Objective", true, ({ objective_ms: objective }) => milliseconds(objective)],
    ["Late", true, ({ late, answered }) => ratio(late, answered)],
    ["Not served", true, ({ dropped, queries }) => ratio(dropped, Math.max(queries, dropped))],
    ["Utility earned", true, ({ earned, offered }) => ratio(earned, offered)],
  ], snapshot.tasks, "No task is served.");
  const note = document.getElementById("tasks-note");
  note.hidden = !snapshot.tasks_left_out;
  note.textContent = `${snapshot.tasks_left_out} more tasks are served; only these have figures of their own here.`;
}

export function trunks({ trunks: found }) {
  document.getElementById("trunks").hidden = found.length < 2;
  if (found.length < 2) return;
  const budget = found.some(({ bytes }) => bytes !== null);
  table("trunk-table", [
    ["Trunk", false, ({ name }) => name],
    ...(budget ? [
      ["In memory", false, ({ loaded }) => (loaded ? "loaded" : "not loaded")],
      ["Takes", true, ({ bytes: size }) => bytes(size)],
    ] : []),
    ["Weights", false, ({ fingerprint }) => fingerprint],
    ["Images", true, ({ image_size: side }) => `${side} × ${side}`],
    ["Tasks", true, ({ tasks: count }) => String(count)],
    ["Queries/s", true, ({ queries }) => number(queries)],
    ["Engine in use", true, ({ busy }) => percent(busy)],
    ["Time over profile", true, ({ pace }) => `${number(pace)} ×`],
  ], found, "");
}

// counts: queries by reason.
export function reasons(counts) {
  const place = document.getElementById("reasons");
  const entries = Object.entries(counts).filter(([, count]) => count >= 0.5).sort((a, b) => b[1] - a[1]);
  if (!entries.length) { place.replaceChildren(element("span", "none", "All queries of this time were answered, or wait.")); return; }
  place.replaceChildren(...entries.flatMap(([reason, count]) => {
    const bar = element("div", "bar", "");
    bar.style.width = `${100 * count / entries[0][1]}%`;
    return [element("span", "", REASONS[reason] || reason), bar, element("span", "", number(Math.round(count)))];
  }));
}
