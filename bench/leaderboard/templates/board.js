"use strict";
for (const section of document.querySelectorAll(".sortable")) {
  const table = section.querySelector("table"), body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells], rows = [...body.rows];
  const status = section.querySelector("[role=status]");
  const say = (text) => { if (status) status.textContent = text; };
  heads.forEach((head, index) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const first = head.dataset.first || "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach((one) => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const key = (row) => row.cells[index].dataset.value;
      const numeric = head.dataset.kind === "number";
      const sorted = [...rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        return sign * (numeric ? Number(x) - Number(y) : x.localeCompare(y));
      });
      body.append(...sorted);
      say(`sorted by ${button.textContent.trim()}, ${order}`);
    });
  });
  const search = section.querySelector("input[type=search]");
  if (search) search.addEventListener("input", () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    say(`${shown} of ${rows.length} rows`);
  });
  for (const box of section.querySelectorAll(".choices input")) {
    const apply = () => {
      const index = Number(box.value);
      for (const row of table.rows) row.cells[index].hidden = !box.checked;
    };
    box.addEventListener("change", apply);
    apply();
  }
  const controls = section.querySelector(".controls");
  if (controls) controls.hidden = false;
}
for (const box of document.querySelectorAll("[data-hides]")) {
  const apply = () => { for (const one of document.querySelectorAll(box.dataset.hides)) one.hidden = !box.checked; };
  box.addEventListener("change", apply);
  apply();
}
