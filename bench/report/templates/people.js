// People: the mean of the chosen metric for each person, a dot per image, and their pictures.
const crowd = document.getElementById("people-view");
const PEOPLE = 12, PER_PERSON = 3, MOST_NAMED = 3;
const imagesOf = data.people.map(() => []);
data.who.forEach((person, image) => imagesOf[person].push(image));
const crowdState = { order: "worst", words: [], count: PEOPLE };

const personMean = (person, run) => mean(imagesOf[person].map((image) => valueOf(metric, run, image)).filter((value) => value !== null));

const dots = (person, low, high) => {
  const width = 260, line = 16, left = 6, x = (value) => left + ((value - low) / (high - low || 1)) * (width - 2 * left);
  const drawing = el("svg:svg", { viewBox: `0 0 ${width} ${line * runs.length + 4}`, role: "img",
    "aria-label": `${metricOf(metric).title} of the images of ${data.people[person]}` });
  runs.forEach((run, row) => {
    const y = 2 + line * (row + 0.5);
    drawing.append(el("svg:line", { class: "grid", x1: left, x2: width - left, y1: y, y2: y }));
    for (const image of imagesOf[person]) {
      const value = valueOf(metric, run.index, image);
      if (value !== null) drawing.append(dot(run, x(value), y, 3.2, {},
        el("svg:title", { text: `${data.images[image]} · ${run.label} · ${show(value)}` })));
    }
    const middle = personMean(person, run.index);
    if (middle !== null) drawing.append(el("svg:line", { class: `mean ${run.colour}`, x1: x(middle), x2: x(middle), y1: y - 6, y2: y + 6 }));
  });
  return drawing;
};

const card = (person, low, high) => {
  const images = imagesOf[person];
  const node = el("article", { class: "card person" }, el("h3", {}, data.people[person] + " ", el("small", { text: images.length === 1 ? "1 image" : `${images.length} images` })));
  node.append(el("dl", { class: "values" }, runs.map((run) => {
    const known = images.filter((image) => valueOf(metric, run.index, image) !== null).length;
    const value = personMean(person, run.index);
    const text = value === null ? `n/a: ${reasonOf(metric, run.index, images[0])}` : show(value) + (known < images.length ? ` (${known} of ${images.length})` : "");
    return el("div", {}, el("dt", {}, key(run), runs.length > 1 ? run.label : `mean ${metricOf(metric).title}`), el("dd", { text }));
  })));
  node.append(dots(person, low, high));
  const pictured = images.filter((image) => data.cases[image]).slice(0, PER_PERSON);
  for (const image of pictured) {
    const found = data.cases[image];
    const strip = [["LQ", data.pictures[found.lq]]];
    strip.push(...sidesOf(image).slice(1).map((one) => [one.run === undefined ? "truth" : one.name, one.src, one.run]));
    if (found.references.length) strip.unshift(["ref. 1", data.pictures[found.references[0]]]);
    node.append(el("button", { type: "button", class: "row", title: `Open ${data.images[image]}`, "aria-label": `Open ${data.images[image]}`, on: { click: () => openCase(image) } },
      strip.map(([caption, src, run]) => el("span", {}, el("img", { src, alt: caption, loading: "lazy" }),
        run === undefined || runs.length <= MOST_NAMED ? el("small", { text: caption }) : el("small", { title: caption }, key(runs[run]))))));
  }
  if (!pictured.length) node.append(el("p", { class: "soft", text: "No pictures of this person are in this file." }));
  return node;
};

const grid = el("div", { class: "crowd" });
const count = el("span", { class: "soft", role: "status" });
const morePeople = el("button", { type: "button", class: "more", text: "Show more people", on: { click: () => { crowdState.count += PEOPLE; drawPeople(); } } });
const peopleOrder = select([["worst", "worst mean first"], ["best", "best mean first"], ["name", "by name"]], crowdState.order, (value) => { crowdState.order = value; drawPeople(); });
const drawPeople = () => {
  grid.replaceChildren();
  if (metric === null) return;
  relabel(peopleOrder, { worst: `${endsOf(metric).worst} mean first`, best: `${endsOf(metric).best} mean first` });
  const values = data.scores[metric].flat().filter((value) => value !== null);
  const low = values.reduce((a, b) => Math.min(a, b), Infinity), high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const sign = (metricOf(metric).better === false ? -1 : 1) * (crowdState.order === "best" ? -1 : 1);
  let people = data.people.map((name, person) => person).filter((person) => crowdState.words.every((word) => data.people[person].toLowerCase().includes(word)));
  if (crowdState.order !== "name") {
    const means = new Map(people.map((person) => [person, personMean(person, data.lead)]));
    people = people.sort((a, b) => {
      const [x, y] = [means.get(a), means.get(b)];
      return x === null || y === null ? (x === null) - (y === null) : sign * (x - y);
    });
  }
  for (const person of people.slice(0, crowdState.count)) grid.append(card(person, low, high));
  count.textContent = `${people.length} of ${data.people.length} people`;
  morePeople.hidden = crowdState.count >= people.length;
};
{
  const search = el("input", { type: "search", placeholder: "part of a name", "aria-label": "Filter people",
    on: { input: () => { crowdState.words = search.value.toLowerCase().split(/\s+/).filter(Boolean); drawPeople(); } } });
  crowd.append(el("div", { class: "controls" }, labelled("Filter", search), labelled(runs.length > 1 ? `Order by ${runs[data.lead].label}` : "Order", peopleOrder), count),
    el("p", { class: "soft", text: "One dot per image, a bar at the person's mean; the scale is the same for all. Press a row of pictures to look closer." }), grid, morePeople);
  onMetric(drawPeople);
}
