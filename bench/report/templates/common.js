"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
/** An element with attributes ("text" is its text, "on" its listeners) and children. */
const el = (tag, attributes = {}, ...children) => {
  const node = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") node.textContent = value;
    else if (name === "on") for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(2).filter((child) => child !== null && child !== undefined));
  return node;
};
/** Four significant digits and no exponent, as in the tables. */
const show = (value) => {
  if (value === null || value === undefined) return "n/a";
  if (value === 0) return "0";
  const size = Math.abs(value) >= 1 ? String(Math.floor(Math.abs(value))).length : 0;
  return value.toFixed(Math.max(0, 4 - size));
};
const select = (options, chosen, onchange) => {
  const node = el("select", { on: { change: () => onchange(node.value) } });
  for (const [value, text] of options) node.add(new Option(text, value, false, String(value) === String(chosen)));
  return node;
};
const labelled = (text, control) => el("label", {}, text + " ", control);
const metricOf = (name) => data.metrics.find((metric) => metric.name === name);
const valueOf = (name, run, image) => data.scores[name][run][image];
const reasonOf = (name, run, image) => data.reasons[data.why[name][run][image]];
const hasValues = (name) => data.scores[name].some((values) => values.some((value) => value !== null));
const mean = (values) => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null);
// Six colours; every six runs have another shape.
const COLOURS = 6, SHAPES = 4;
const runs = data.runs.map((run, index) => ({ ...run, index, colour: `run${index % COLOURS}`, shape: Math.floor(index / COLOURS) % SHAPES }));
const key = (run) => el("span", { class: `key ${run.colour} shape${run.shape}` });
const legend = (among = runs) => el("p", { class: "legend", hidden: runs.length < 2 }, among.map((run) => el("span", {}, key(run), run.label)));
/** The dot of a run: circle, square, diamond or triangle of about the same area. */
const dot = (run, x, y, r, attributes, ...children) => {
  const a = r * 0.89, b = r * 1.25;
  const path = [null, `M${-a} ${-a}h${2 * a}v${2 * a}h${-2 * a}z`, `M0 ${-b}L${b} 0 0 ${b} ${-b} 0z`, `M0 ${-b}L${b} ${0.9 * b}H${-b}z`][run.shape];
  const shape = path === null ? { cx: x, cy: y, r } : { d: path, transform: `translate(${x} ${y})` };
  return el(path === null ? "svg:circle" : "svg:path", { class: `dot ${run.colour}`, ...shape, ...attributes }, ...children);
};
/** What a metric is called where a heading's arrow would stand on its side. */
const inWords = (metric) => {
  const facts = [metric.unit, { true: "higher is better", false: "lower is better" }[metric.better]].filter(Boolean);
  return facts.length ? `${metric.title} (${facts.join(", ")})` : metric.title;
};
const endsOf = (metric) => (metric !== null && metricOf(metric).better === null ? { worst: "lowest", best: "highest" } : { worst: "worst", best: "best" });
/** Gives the options of a select other words; the chosen one stays chosen. */
const relabel = (node, words) => { for (const option of node.options) if (words[option.value]) option.text = words[option.value]; };
/** The values of one metric and run as [image number, value], without missing ones. */
const scored = (name, run) => data.scores[name][run].map((value, image) => [image, value]).filter(([, value]) => value !== null);
const missingOf = (name, run) => {
  const counts = new Map();
  data.scores[name][run].forEach((value, image) => {
    if (value === null) counts.set(reasonOf(name, run, image), (counts.get(reasonOf(name, run, image)) || 0) + 1);
  });
  return [...counts].map(([reason, count]) => `${runs[run].label}: ${count} of ${data.images.length} without a value (${reason})`);
};
/** Round numbers within [low, high]. */
const ticks = (low, high, about = 5) => {
  if (!(high > low)) return [low];
  const raw = (high - low) / about, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((one) => one >= raw * 0.999);
  const found = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + 1e-9 * step; index++) found.push(index * step);
  return found;
};
const tickText = (value) => String(Number(value.toPrecision(4)));

// One metric is chosen for the whole page; every part draws itself again when it changes.
const chooser = document.getElementById("metric");
const shown = data.metrics.filter((metric) => hasValues(metric.name));
const drawings = [];
let metric = data.chosen || (shown[0] && shown[0].name) || null;
for (const one of shown) chooser.add(new Option(one.heading, one.name, false, one.name === metric));
const onMetric = (draw) => { drawings.push(draw); draw(); };
chooser.addEventListener("change", () => { metric = chooser.value; for (const draw of drawings) draw(); });
chooser.parentElement.hidden = shown.length === 0;
