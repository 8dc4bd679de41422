// Draws what /events sends once a second, and what /history has kept.

import { against, curves, stacked } from "./charts.js";
import { bytes, ceilingBytes, delta, milliseconds, number, percent, tint } from "./format.js";
import { Past } from "./history.js";
import * as panels from "./panels.js";

const SHORTEST_AXIS = 60; // seconds: a server that has just begun
const select = document.getElementById("task");
let now = null; // the newest snapshot
let restarts = 0, messages = 0;
let queries = new Past("5m", ""), engine = queries; // of the chosen task, and of the server
let loading = false, again = false;

function figure(name) { return document.getElementById(`chart-${name}`); }

function axis(past) {
  const length = Math.min(past.length, Math.max(SHORTEST_AXIS, now.uptime));
  const step = { "5m": 1, "1h": 10, "1d": 120 }[past.span];
  return { ends: past.ends, now: now.uptime, length, step };
}

function series(past, ...wanted) {
  return wanted.map(([label, column, colour, style]) => ({ label, colour, style, values: past.column(column) }));
}

// Place of the trunk that a schedule's name begins with, if there are several.
function trunk(schedule) { return Math.max(0, now.trunks.findIndex(({ name }) => schedule.startsWith(`${name}:`))); }

function draw() {
  if (!now || now.starting || document.hidden) return;
  const mine = axis(queries), all = axis(engine), task = now.tasks.find(({ name }) => name === queries.task);
  curves(figure("load"), mine, series(queries, ["arriving", "queries", "--blue"], ["answered", "answered", "--green"],
    ["not served", "dropped", "--red"]), number, { empty: "No queries in this time." });
  curves(figure("latency"), mine, series(queries, ["p50", "p50", "--blue"], ["p95", "p95", "--orange"], ["p99", "p99", "--violet"]),
    milliseconds, { empty: "No answers in this time.", limit: task && task.objective_ms ? { label: "objective", value: task.objective_ms } : null });
  curves(figure("utility"), mine, series(queries, ["offered", "offered", "--grey"], ["earned", "earned", "--green"]), number,
    { empty: "No queries in this time." });
  curves(figure("busy"), all, series(engine, ["share of the time", "busy", "--blue"]), percent, { top: 1 });
  curves(figure("queue"), all, series(engine, ["waiting", "queued", "--violet"]), number);
  curves(figure("error"), all, series(engine, ["error", "error", "--orange"]), percent, { empty: "No batches in this time." });
  curves(figure("memory"), all, series(engine, ["memory", "memory", "--blue"]), bytes, { round: ceilingBytes });
  const names = Object.keys(engine.groups.schedules).sort((a, b) => delta(a) - delta(b) || a.localeCompare(b));
  stacked(figure("schedules"), all, names.map((name) => ({ label: name, colour: tint(name, trunk(name)), values: engine.groups.schedules[name] })),
    percent, "No batches in this time.");
  against(figure("batches"), now.batches, milliseconds, "No batch has run yet.");
  panels.reasons(Object.fromEntries(Object.entries(engine.groups.reasons).map(([reason, values]) => (
    [reason, values.reduce((sum, rate, at) => sum + (rate || 0) * engine.seconds[at], 0)]))));
}

// One request at a time, for each of the two only if it may have a new row.
async function load() {
  if (loading) { again = true; return; }
  loading = true;
  do {
    again = false;
    const wanted = queries === engine ? [queries] : [queries, engine];
    try {
      for (const past of wanted) await past.load();
    } catch {
      break; // the stream says that there is no connection
    }
    draw();
  } while (again);
  loading = false;
}

function due() {
  const step = { "5m": 0.9, "1h": 10, "1d": 120 }[queries.span], last = engine.ends[engine.ends.length - 1];
  return last === undefined || now.uptime - last >= step;
}

function choose() {
  const span = document.querySelector("input[name=span]:checked").value;
  engine = new Past(span, "");
  queries = select.value ? new Past(span, select.value) : engine;
  load();
}

function offerTasks(names) {
  if (select.dataset.names === JSON.stringify(names)) return;
  select.dataset.names = JSON.stringify(names);
  const chosen = select.value;
  select.replaceChildren(...["", ...names].map((name) => new Option(name || "all tasks", name)));
  select.value = names.includes(chosen) ? chosen : "";
  if (select.value !== chosen) choose();
}

function shown(snapshot) {
  if (now && snapshot.started !== now.started) { restarts += 1; queries.clear(); engine.clear(); }
  now = snapshot;
  messages += 1;
  panels.start(snapshot.starting);
  panels.tiles(snapshot);
  panels.tasks(snapshot);
  panels.trunks(snapshot);
  panels.alarms(snapshot);
  offerTasks(snapshot.tasks.map(({ name }) => name));
  const states = { ready: ["live", "ready"], starting: ["starting", "starting"], retiring: ["draining", "not ready"], draining: ["draining", "not ready"] };
  panels.state(...states[snapshot.state]);
  draw();
  if (!document.hidden && due()) load();
  document.body.dataset.messages = messages;
  document.body.dataset.restarts = restarts;
}

// A browser retries a broken stream, but gives up where it got an answer that is none; then we do.
function connect() {
  const source = new EventSource("events");
  source.onmessage = (event) => shown(JSON.parse(event.data));
  source.onerror = () => {
    panels.state("lost", "no connection, trying again");
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 1000);
  };
}

// A page that nobody sees asks for nothing but the stream; what it missed is loaded when it is seen.
document.addEventListener("visibilitychange", () => { if (now && !document.hidden) load(); });
document.getElementById("controls").addEventListener("change", choose);
document.getElementById("controls").addEventListener("submit", (event) => event.preventDefault());
addEventListener("resize", draw);
connect();
