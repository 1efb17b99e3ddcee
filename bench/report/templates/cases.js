// Pictures: the worst, best or middle images by the chosen metric, each with a slider between two pictures.
const view = document.getElementById("case-view");
const EACH = 4;
const cases = { order: "worst", run: data.lead, count: EACH, picked: null };

const picture = (src, caption, alt, role, width) => el("figure", { class: role }, el("img", { src, width, alt, "data-name": caption }),
  el("figcaption", { text: caption }));

/** A picture that says why there is none, in its right half: there the slider shows it. */
const placeholder = (text) => {
  const lines = [""], most = 15;
  for (const word of text.match(/\S{1,15}/g)) {
    if ((lines[lines.length - 1] + word).length > most) lines.push("");
    lines[lines.length - 1] += `${word} `;
  }
  const drawing = el("svg:svg", { viewBox: "0 0 256 256", width: 256, height: 256 }, el("svg:rect", { width: 256, height: 256, fill: "#3a3f46" }),
    lines.slice(0, 12).map((line, index) => el("svg:text", { x: 136, y: 28 + 19 * index, fill: "#fff", "font-size": 14, "font-family": "sans-serif", text: line.trim() })));
  return `data:image/svg+xml;charset=utf-8,${encodeURIComponent(new XMLSerializer().serializeToString(drawing))}`;
};

/** What can stand on a side of the slider: LQ, each run's picture or why it has none, ground truth. */
const sidesOf = (image) => {
  const found = data.cases[image], of = data.images[image];
  const one = (name, number, more) => ({ name, src: data.pictures[number], alt: `${name} of ${of}`, ...more });
  const restored = found.restored.map((number, index) => {
    if (number === found.lq) return null;
    if (number !== null) return one(runs[index].label, number, { run: index });
    const text = `restored picture unreadable: ${found.unreadable[index]}`;
    return { name: runs[index].label, src: placeholder(text), alt: `${runs[index].label}: ${text}`, run: index, unreadable: text };
  });
  return [one("LQ", found.lq), ...restored.filter((side) => side !== null), ...(found.truth === null ? [] : [one("ground truth", found.truth)])];
};

const slider = (sides, image, run) => {
  const over = el("img", { class: "over", alt: "" }), under = el("img", { class: "under", alt: "" });
  const stage = el("div", { class: "stage" }, under, over, el("span", { class: "cut" }));
  const range = el("input", { type: "range", min: 0, max: 100, value: 50,
    "aria-label": `How much of the left picture of ${data.images[image]} is shown` });
  const side = (target, name, chosen) => {
    const apply = (value) => { target.src = sides[value].src; target.alt = sides[value].alt; };
    apply(chosen);
    const node = select(sides.map((one, index) => [index, one.name]), chosen, (value) => apply(Number(value)));
    node.className = name;
    return labelled(name, node);
  };
  const move = () => stage.style.setProperty("--at", `${range.value}%`);
  const point = (event) => {
    const box = stage.getBoundingClientRect();
    range.value = Math.round((100 * (event.clientX - box.left)) / box.width);
    move();
  };
  range.addEventListener("input", move);
  stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); point(event); });
  stage.addEventListener("pointermove", (event) => { if (event.buttons) point(event); });
  move();
  // A side of this run or of another; the ground truth only where every run is the Input itself.
  const right = [sides.findIndex((one) => one.run === run), sides.findIndex((one) => one.run !== undefined), Math.min(1, sides.length - 1)].find((index) => index >= 0);
  return el("div", { class: data.side > 256 ? "slider large" : "slider" }, stage, range,
    el("div", { class: "sides" }, side(over, "left", 0), side(under, "right", right)));
};

const valuesTable = (image) => el("table", {},
  el("thead", {}, el("tr", {}, el("th", { scope: "col", class: "text", text: "metric" }), runs.map((run) => el("th", { scope: "col" }, key(run), run.label)))),
  el("tbody", {}, shown.map((one) => el("tr", {}, el("th", { scope: "row", text: one.heading }), runs.map((run) => {
    const value = valueOf(one.name, run.index, image);
    return value === null ? el("td", { class: "none", text: `n/a: ${reasonOf(one.name, run.index, image)}` }) : el("td", { text: show(value) });
  })))));

const article = (image, kind, label, run) => {
  const found = data.cases[image];
  const node = el("article", { class: "case", id: `case-${image}`, tabindex: -1 }, el("h3", {},
    el("span", { class: `kind ${kind}`, text: label }), ` ${data.images[image]} `, el("small", { text: data.people[data.who[image]] })));
  const values = runs.map((one) => el("div", {}, el("dt", {}, runs.length > 1 ? key(one) : null, runs.length > 1 ? one.label : metricOf(metric).title),
    el("dd", { text: valueOf(metric, one.index, image) === null ? `n/a: ${reasonOf(metric, one.index, image)}` : show(valueOf(metric, one.index, image)) })));
  if (found) {
    const sides = sidesOf(image), strip = el("div", { class: "strip" }, picture(sides[0].src, "LQ", sides[0].alt, "lq", 200));
    if (found.references.length) strip.append(el("div", { class: found.references.length > 1 ? "references" : "references one" },
      found.references.map((number, index) => picture(data.pictures[number], `ref. ${index + 1}`, `ref. ${index + 1} of ${data.images[image]}`, "reference", 78))));
    for (const one of sides.slice(1)) strip.append(picture(one.src, one.name, one.alt, one.run === undefined ? "truth" : "restored", 200));
    node.append(el("div", { class: "look" }, slider(sides, image, run), strip));
    for (const one of sides) if (one.unreadable) node.append(el("p", { class: "soft", text: one.alt }));
    if (found.side) node.append(el("p", { class: "soft", text: `Shown at ${found.side} of ${data.side} px.` }));
  } else node.append(el("p", { class: "soft", text: "The pictures of this image are not in this file." }));
  node.append(el("dl", { class: "values" }, values));
  const all = el("details", { class: "all" }, el("summary", { text: "All values" }));
  all.addEventListener("toggle", () => { if (all.open && all.children.length === 1) all.append(el("div", { class: "wide", tabindex: 0 }, valuesTable(image))); });
  node.append(all);
  return node;
};

/** Images in the chosen order as [image, label]. */
const ranking = () => {
  const known = scored(metric, cases.run);
  const better = metricOf(metric).better === false ? -1 : 1;
  if (cases.order === "gain" || cases.order === "loss") {
    const sign = cases.order === "gain" ? -1 : 1;
    return known.map(([image, value]) => [image, valueOf(metric, data.input, image), value])
      .filter(([, before]) => before !== null).map(([image, before, value]) => [image, better * (value - before)])
      .sort((a, b) => sign * (a[1] - b[1]));
  }
  const worstFirst = known.sort((a, b) => better * (a[1] - b[1]) || a[0] - b[0]);
  if (cases.order === "best") return worstFirst.reverse();
  if (cases.order === "worst") return worstFirst;
  const middle = (worstFirst.length - 1) / 2;
  return worstFirst.map((one, rank) => [one, Math.abs(rank - middle)]).sort((a, b) => a[1] - b[1]).map(([one]) => one);
};

const list = el("div", { class: "cases" });
const more = el("button", { type: "button", class: "more", text: "Show more", on: { click: () => { cases.count += EACH; drawCases(); } } });
const drawCases = () => {
  list.replaceChildren();
  if (metric === null) return void list.append(el("p", { class: "soft", text: "No metric has a value, so no image is the best or the worst." }));
  // Those with pictures first, each under the rank that it has among all.
  const all = ranking().map(([image], rank) => ({ image, rank }));
  const ranked = [...all.filter((one) => data.cases[one.image]), ...all.filter((one) => !data.cases[one.image])];
  if (cases.picked !== null) list.append(article(cases.picked, "picked", "chosen", cases.run));
  relabel(order, orderWords());
  const words = { ...endsOf(metric), gain: "gain", loss: "loss", median: "median" };
  const kind = metricOf(metric).better === null ? "plain" : cases.order;
  for (const { image, rank } of ranked.slice(0, cases.count))
    if (image !== cases.picked) list.append(article(image, kind, `${words[cases.order]} ${rank + 1}`, cases.run));
  if (!ranked.length) list.append(el("p", { class: "warn", text: missingOf(metric, cases.run).join("; ") || "No image to show." }));
  more.hidden = cases.count >= ranked.length;
};
/** Shows one image on top of the pictures; used by the plots and the table. */
const openCase = (image) => {
  cases.picked = image;
  drawCases();
  const node = document.getElementById(`case-${image}`);
  node.scrollIntoView({ block: "start" });
  node.focus({ preventScroll: true });
};
const redraw = () => { cases.count = EACH; cases.picked = null; drawCases(); };
const orderWords = () => {
  const gains = metricOf(metric).better === null ? ["largest rise over Input", "largest fall below Input"] : ["largest gain over Input", "smallest gain over Input"];
  return { worst: `${endsOf(metric).worst} first`, best: `${endsOf(metric).best} first`, median: "median first", gain: gains[0], loss: gains[1] };
};
const gainful = data.input !== null && runs.length > 1;
const order = select(["worst", "best", "median", ...(gainful ? ["gain", "loss"] : [])].map((name) => [name, name]), cases.order,
  (value) => { cases.order = value; redraw(); });
{
  order.id = "case-order";
  const controls = el("div", { class: "controls" }, labelled("Order", order));
  if (runs.length > 1) controls.append(labelled("by the values of", select(runs.map((run) => [run.index, run.label]), cases.run, (value) => { cases.run = Number(value); redraw(); })));
  const count = Object.keys(data.cases).length;
  if (count < data.images.length && count) controls.append(el("span", { class: "soft", text: `pictures of ${count} of ${data.images.length} images are in this file` }));
  view.append(controls, list, more);
  onMetric(redraw);
}
