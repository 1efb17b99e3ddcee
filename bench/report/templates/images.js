// Every image: one row per image and run, sorted by any column, filtered by words, drawn a page at a time.
{
  const PAGE = 40, several = runs.length > 1;
  const rows = data.images.flatMap((image, index) => runs.map((run) => ({
    image: index, run: run.index, words: `${image} ${data.people[data.who[index]]} ${run.label}`.toLowerCase() })));
  const columns = [{ text: "image", of: (row) => data.images[row.image] }, { text: "person", narrow: true, of: (row) => data.people[data.who[row.image]] }];
  if (several) columns.push({ text: "run", wraps: true, of: (row) => runs[row.run].label });
  for (const one of shown) columns.push({ text: one.heading, metric: one.name, better: one.better, of: (row) => valueOf(one.name, row.run, row.image) });
  const state = { column: null, sign: 1, words: [], count: PAGE };
  const body = el("tbody"), status = el("span", { class: "soft", role: "status" });
  const kindOf = (column) => (column.metric ? "" : `text${column.narrow ? " laptop" : ""}${column.wraps ? " wraps" : ""}`);
  const heads = columns.map((column) => el("th", { scope: "col", class: kindOf(column) },
    el("button", { type: "button", text: column.text, on: { click: () => sort(column) } })));
  const sort = (column) => {
    const first = column.better === true ? -1 : 1;
    state.sign = state.column === column ? -state.sign : first;
    state.column = column;
    heads.forEach((head, index) => {
      if (columns[index] === column) head.setAttribute("aria-sort", state.sign > 0 ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    draw();
  };
  const cellOf = (row, column, index) => {
    const value = column.of(row);
    if (index === 0) return el("th", { scope: "row" }, el("button", { type: "button", class: "link", text: value, on: { click: () => openCase(row.image) } }));
    if (!column.metric) return el("td", { class: kindOf(column) }, column.text === "run" ? key(runs[row.run]) : null, value);
    return value === null ? el("td", { class: "none" }, "n/a", el("small", { class: "coverage", text: reasonOf(column.metric, row.run, row.image) })) : el("td", { text: show(value) });
  };
  const more = el("button", { type: "button", class: "more", text: "Show more rows", on: { click: () => { state.count += PAGE; draw(); } } });
  const draw = () => {
    const found = rows.filter((row) => state.words.every((word) => row.words.includes(word)));
    if (state.column) found.sort((a, b) => {
      const [x, y] = [state.column.of(a), state.column.of(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      return state.sign * (typeof x === "number" ? x - y : x.localeCompare(y, undefined, { numeric: true }));
    });
    body.replaceChildren(...found.slice(0, state.count).map((row) => el("tr", {}, columns.map((column, index) => cellOf(row, column, index)))));
    status.textContent = `${Math.min(state.count, found.length)} of ${found.length} rows`;
    more.hidden = state.count >= found.length;
  };
  const search = el("input", { type: "search", placeholder: several ? "image, person, run" : "image, person", "aria-label": "Filter images",
    on: { input: () => { state.words = search.value.toLowerCase().split(/\s+/).filter(Boolean); state.count = PAGE; draw(); } } });
  document.getElementById("image-view").append(el("div", { class: "controls" }, labelled("Filter", search), status),
    el("div", { class: "wide tall", tabindex: 0, role: "region", "aria-label": "Every image" }, el("table", {}, el("thead", {}, el("tr", {}, heads)), body)), more);
  draw();
}
