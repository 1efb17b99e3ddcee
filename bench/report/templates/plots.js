// Plots: a metric against how strongly each picture was degraded, and its distribution for each run.
const plots = document.getElementById("plot-view");
const W = 560, H = 360, BOX = { left: 56, right: 14, top: 12, bottom: 48 };

const range = (values, margin = 0.05) => {
  const low = values.reduce((a, b) => Math.min(a, b), Infinity), high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const extra = (high - low) * margin || Math.abs(high) * 0.01 || 1;
  return [low - extra, high + extra];
};
const frame = (label, yLow, yHigh, yTitle) => {
  const y = (value) => H - BOX.bottom - ((value - yLow) / (yHigh - yLow)) * (H - BOX.top - BOX.bottom);
  const drawing = el("svg:svg", { viewBox: `0 0 ${W} ${H}`, role: "group", "aria-label": label, tabindex: 0, class: "plot" });
  for (const tick of ticks(yLow, yHigh)) drawing.append(
    el("svg:line", { class: "grid", x1: BOX.left, x2: W - BOX.right, y1: y(tick), y2: y(tick) }),
    el("svg:text", { x: BOX.left - 6, y: y(tick) + 4, "text-anchor": "end", text: tickText(tick) }));
  drawing.append(el("svg:text", { x: -(H - BOX.bottom) / 2, y: 13, transform: "rotate(-90)", "text-anchor": "middle", class: "axis", text: yTitle }));
  return [drawing, y];
};

// Degradation strength: a metric of the Input row, the LQ's own PSNR, or a recorded parameter.
const strengths = [];
if (data.input !== null) for (const one of shown) {
  if (data.scores[one.name][data.input].some((value) => value !== null))
    strengths.push({ title: `${one.unit ? `${one.title} (${one.unit})` : one.title} of the Input`, values: data.scores[one.name][data.input], metric: one.name });
}
strengths.push(...data.strengths);

const scatter = (box, status, strength, keys) => {
  const points = [];
  // Against its own values the Input would be a line.
  const drawn = runs.filter((run) => run.index !== data.input || strength.metric === undefined || runs.length < 2);
  keys.replaceChildren(...legend(drawn).children);
  for (const run of drawn) {
    for (const [image, value] of scored(metric, run.index)) if (strength.values[image] !== null && strength.values[image] !== undefined)
      points.push({ image, run, x: strength.values[image], y: value });
  }
  if (!points.length) return void box.replaceChildren(el("p", { class: "soft", text: "No image has both values." }));
  const [xLow, xHigh] = range(points.map((point) => point.x)), [yLow, yHigh] = range(points.map((point) => point.y));
  const title = inWords(metricOf(metric));
  const [drawing, y] = frame(`${title} against ${strength.title}. Arrow keys step through the images, Enter opens one.`, yLow, yHigh, title);
  const x = (value) => BOX.left + ((value - xLow) / (xHigh - xLow)) * (W - BOX.left - BOX.right);
  for (const tick of ticks(xLow, xHigh)) drawing.append(
    el("svg:line", { class: "grid", x1: x(tick), x2: x(tick), y1: BOX.top, y2: H - BOX.bottom }),
    el("svg:text", { x: x(tick), y: H - BOX.bottom + 17, "text-anchor": "middle", text: tickText(tick) }));
  drawing.append(el("svg:text", { x: (W + BOX.left) / 2, y: H - 6, "text-anchor": "middle", class: "axis", text: strength.title }));
  if (strength.metric === metric) {
    const [low, high] = [Math.max(xLow, yLow), Math.min(xHigh, yHigh)];
    if (high > low) drawing.append(el("svg:line", { class: "equal", x1: x(low), y1: y(low), x2: x(high), y2: y(high) }));
  }
  points.sort((a, b) => a.x - b.x || a.run.index - b.run.index);
  const say = (point) => { status.textContent = `${data.images[point.image]} · ${point.run.label} · ${strength.title} ${show(point.x)} · ${metricOf(metric).title} ${show(point.y)}`; };
  points.forEach((point, index) => {
    point.node = dot(point.run, x(point.x), y(point.y), points.length > 600 ? 2.4 : 4, {
      on: { pointerenter: () => mark(index), click: () => openCase(point.image) } },
    el("svg:title", { text: `${data.images[point.image]} · ${point.run.label}` }));
    drawing.append(point.node);
  });
  let at = -1;
  const mark = (index) => {
    if (at >= 0) points[at].node.classList.remove("marked");
    at = (index + points.length) % points.length;
    points[at].node.classList.add("marked");
    say(points[at]);
  };
  drawing.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight" || event.key === "ArrowUp") mark(at + 1);
    else if (event.key === "ArrowLeft" || event.key === "ArrowDown") mark(at < 0 ? points.length - 1 : at - 1);
    else if (event.key === "Enter" && at >= 0) openCase(points[at].image);
    else return;
    event.preventDefault();
  });
  const side = { true: "Above the dashed line: better than its Input.", false: "Below the dashed line: better than its Input." }[metricOf(metric).better];
  status.textContent = strength.metric === metric ? side ?? "On the dashed line an image scores what its Input does." : "";
  box.replaceChildren(drawing);
};

const quantile = (sorted, share) => {
  const at = (sorted.length - 1) * share, low = Math.floor(at);
  return sorted[low] + (at - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
};
/** Gaussian kernel density with Silverman's bandwidth; null where too few or equal values have none. */
const density = (sorted) => {
  const n = sorted.length, middle = mean(sorted);
  const spread = Math.sqrt(sorted.reduce((sum, value) => sum + (value - middle) ** 2, 0) / Math.max(1, n - 1));
  const width = 0.9 * Math.min(spread, (quantile(sorted, 0.75) - quantile(sorted, 0.25)) / 1.34 || spread) * n ** -0.2;
  if (n < 5 || !(width > 0)) return null;
  const few = n > 2000 ? sorted.filter((_, index) => index % Math.ceil(n / 2000) === 0) : sorted;
  return (value) => mean(few.map((one) => Math.exp(-0.5 * ((value - one) / width) ** 2)));
};

const violin = (box, status) => {
  const values = runs.map((run) => scored(metric, run.index).map(([, value]) => value).sort((a, b) => a - b));
  const [yLow, yHigh] = range(values.flat(), 0.08);
  const title = inWords(metricOf(metric));
  const [drawing, y] = frame(`Distribution of ${title} for each run`, yLow, yHigh, title);
  drawing.setAttribute("role", "img");
  drawing.removeAttribute("tabindex");
  const slot = (W - BOX.left - BOX.right) / runs.length, half = Math.min(70, slot * 0.42);
  runs.forEach((run, index) => {
    const sorted = values[index], centre = BOX.left + slot * (index + 0.5);
    const label = run.label.length > slot / 7 ? run.label.slice(0, Math.max(3, Math.floor(slot / 7) - 1)) + "…" : run.label;
    drawing.append(el("svg:text", { x: centre, y: H - BOX.bottom + 18, "text-anchor": "middle", text: label }, el("svg:title", { text: run.label })),
      el("svg:text", { x: centre, y: H - BOX.bottom + 18, dy: "1.3em", "text-anchor": "middle", text: `n = ${sorted.length} of ${data.images.length}` }));
    if (!sorted.length) return;
    const curve = density(sorted);
    if (curve) {
      const steps = Array.from({ length: 61 }, (_, step) => sorted[0] + ((sorted[sorted.length - 1] - sorted[0]) * step) / 60);
      const heights = steps.map(curve), most = Math.max(...heights);
      const edge = (sign) => steps.map((value, step) => `${(centre + (sign * half * heights[step]) / most).toFixed(1)},${y(value).toFixed(1)}`);
      drawing.append(el("svg:polygon", { class: `violin ${run.colour}`, points: [...edge(1), ...edge(-1).reverse()].join(" ") }));
    }
    const [low, middle, high] = [0.25, 0.5, 0.75].map((share) => quantile(sorted, share));
    drawing.append(el("svg:rect", { class: `quartiles ${run.colour}`, x: centre - 7, width: 14, y: y(high), height: Math.max(1, y(low) - y(high)) }),
      el("svg:line", { class: `mean ${run.colour}`, x1: centre - 12, x2: centre + 12, y1: y(middle), y2: y(middle) }));
    data.people.forEach((name, person) => {
      const value = personMean(person, run.index);
      if (value !== null) drawing.append(dot(run, centre + ((person * 37) % 17 - 8) * (half / 14), y(value), 2.6, {},
        el("svg:title", { text: `${name} · ${run.label} · mean ${show(value)}` })));
    });
  });
  status.textContent = ["Outline: density over images; box: quartiles; line: median; dots: people's means.", ...runs.flatMap((run) => missingOf(metric, run.index))].join(" ");
  box.replaceChildren(drawing);
};

{
  const part = (title) => {
    const box = el("div", { class: "drawing" }), status = el("figcaption", { class: "soft", role: "status" });
    const keys = legend();
    return [el("figure", { class: "card" }, el("h3", { text: title }), keys, box, status), box, status, keys];
  };
  const [left, scatterBox, scatterStatus, scatterKeys] = part("Against degradation strength");
  const [right, violinBox, violinStatus] = part("Distribution for each run");
  if (shown.length) plots.append(left, right);
  if (!strengths.length) {
    scatterBox.append(el("p", { class: "soft", text: "How strongly these pictures were degraded is not known: the data set brings them, and no Input run is in this report." }));
  } else {
    const usual = strengths.findIndex((one) => one.metric === data.chosen);
    let chosen = Math.max(0, usual);
    const draw = () => scatter(scatterBox, scatterStatus, strengths[chosen], scatterKeys);
    const control = select(strengths.map((one, index) => [index, one.title]), chosen, (value) => { chosen = Number(value); draw(); });
    control.id = "strength";
    scatterBox.before(el("div", { class: "controls" }, labelled("Strength", control)));
    if (shown.length) onMetric(draw);
  }
  if (shown.length) onMetric(() => violin(violinBox, violinStatus));
}
