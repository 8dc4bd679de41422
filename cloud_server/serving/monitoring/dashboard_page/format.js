// Numbers as people read them.

const NONE = "–";

function missing(value) { return value === null || value === undefined || Number.isNaN(value); }

export function number(value) {
  if (missing(value)) return NONE;
  if (value >= 10000) return `${(value / 1000).toFixed(value >= 100000 ? 0 : 1)}k`;
  return value >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(value >= 10 ? 1 : 2);
}

export function milliseconds(value) {
  if (missing(value)) return NONE;
  if (value === 0) return "0";
  if (value >= 10000) return `${(value / 1000).toFixed(0)} s`;
  if (value >= 1000) return `${(value / 1000).toFixed(1)} s`;
  return `${value.toFixed(value < 10 ? 1 : 0)} ms`;
}

export function percent(share) {
  if (missing(share)) return NONE;
  const value = 100 * share;
  if (value === 0 || value === 100) return `${value} %`;
  if (value > 99 && value < 100) return `${Math.min(99.9, value).toFixed(1)} %`; // not quite all
  return `${value.toFixed(value >= 10 ? 0 : 1)} %`;
}

export function ratio(part, whole) { return whole > 0 ? percent(part / whole) : NONE; }

export function bytes(value) {
  if (missing(value)) return NONE;
  if (value === 0) return "0";
  return value >= 2 ** 30 ? `${(value / 2 ** 30).toFixed(1)} GiB` : `${(value / 2 ** 20).toFixed(0)} MiB`;
}

export function duration(seconds) {
  if (seconds < 100) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 360) / 10} h` : `${Math.round(seconds / 86400)} days`;
}

// The same with a digit more, for an axis: 2.5 min.
export function age(seconds) {
  if (seconds < 100) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 6) / 10} min` : `${Math.round(seconds / 360) / 10} h`;
}

// The smallest power of two, or one and a half of it, that is not below `value`.
export function ceilingBytes(value) {
  const power = 2 ** Math.floor(Math.log2(Math.max(value, 1)));
  return [1, 1.5, 2].map((step) => step * power).find((top) => top >= value);
}

// The smallest round number that is not below `value`.
export function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((step) => step * power).find((top) => top >= value * 0.999);
}

// Tokens added (> 0) or merged away (< 0) per layer, from the schedule's name: 0, -10, +4a, m22x4-20x4-0x4, +4-10, g9-3.
export function delta(schedule) {
  const name = schedule.slice(schedule.lastIndexOf(":") + 1).replace(/^g\d+/, ""), larger = /(^|:)g\d/.test(schedule) ? 6 : 0;
  const prompts = /^\+(\d+)/.exec(name), merged = name.replace(/^\+\d+a?/, "");
  let gone = 0;
  if (merged.startsWith("m")) {
    const runs = merged.slice(1).split("-").map((run) => run.split("x").map(Number));
    gone = runs.reduce((sum, [value, count]) => sum + value * count, 0) / runs.reduce((sum, [, count]) => sum + count, 0);
  } else if (merged) gone = -Number(merged);
  return (prompts ? Number(prompts[1]) : 0) - (gone || 0) - larger;
}

// Fewer tokens are warm, more are cool, the plain model is grey; the further, the stronger. Further trunks turn the hues.
export function tint(name, trunk = 0) {
  const change = delta(name), dark = matchMedia("(prefers-color-scheme: dark)").matches;
  if (change === 0) return trunk ? `hsl(${140 + 60 * trunk} 18% ${dark ? 50 : 62}%)` : dark ? "#9aa3ab" : "#a9b1b8";
  const strength = Math.min(1, Math.abs(change) / (change < 0 ? 22 : 8));
  const light = dark ? 34 + 34 * strength : 80 - 38 * strength;
  return `hsl(${(change < 0 ? 28 : 205) + 60 * trunk} ${dark ? 75 : 82}% ${light}%)`;
}
