
"use strict";
// Sorts and filters the table of classes. The choice is part of the URL, so that it can be bookmarked and sent.
(() => {
  const form = document.getElementById("filter");
  const table = document.getElementById("table");
  const body = table.tBodies[0];
  const heads = Array.from(table.tHead.rows[0].cells);
  const columns = heads.map((head) => head.dataset.by);
  const value = (row, column) => {
    const text = row.cells[columns.indexOf(column)].textContent;
    return column === "class" || column === "split" ? text : Number(text.replaceAll(",", ""));
  };
  const rows = Array.from(body.rows, (row, position) => ({
    row,
    position,
    name: value(row, "class").toLowerCase(),
    ...Object.fromEntries(columns.map((column) => [column, value(row, column)])),
  }));
  const shows = {
    "": () => true,
    missing: (one) => one.cached < one.clips,
    unavailable: (one) => one.unavailable > 0,
    short: (one) => one.short > 0,
    none: (one) => one.cached === 0,
  };
  const sorted = { by: "class", down: false };

  const show = () => {
    const words = form.find.value.toLowerCase().split(/\s+/);
    const split = form.split ? form.split.value : "";
    const wanted = shows[form.show.value];
    const sums = { clips: 0, cached: 0, short: 0, evicted: 0, unavailable: 0, untried: 0 };
    let shown = 0;
    for (const one of rows) {
      const fits = words.every((word) => one.name.includes(word)) && (!split || one.split === split) && wanted(one);
      one.row.hidden = !fits;
      if (!fits) continue;
      shown += 1;
      for (const name in sums) sums[name] += one[name];
    }
    form.shown.value = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows`;
    const foot = table.tFoot.rows[0];
    for (const name in sums) foot.cells[columns.indexOf(name)].textContent = sums[name].toLocaleString("en");
    const bar = foot.querySelector("progress");
    bar.max = sums.clips || 1;
    bar.value = sums.cached;
    const percent = sums.clips ? (100 * sums.cached) / sums.clips : 0;
    const part = sums.cached > 0 && sums.cached < sums.clips;
    bar.nextSibling.textContent = (part ? Math.min(Math.max(percent, 0.1), 99.9) : percent).toFixed(1);
  };

  const sort = () => {
    const { by, down } = sorted;
    const text = new Intl.Collator("en", { numeric: true }).compare;
    const compare = by === "class" || by === "split" ? (one, other) => text(one[by], other[by]) : (one, other) => one[by] - other[by];
    rows.sort((one, other) => (down ? -1 : 1) * compare(one, other) || one.position - other.position);
    body.append(...rows.map((one) => one.row));
    heads.forEach((head) => {
      if (head.dataset.by === by) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  };

  const note = () => {
    const chosen = new URLSearchParams();
    for (const name of ["find", "split", "show"]) if (form[name]?.value) chosen.set(name, form[name].value);
    if (sorted.by !== "class" || sorted.down) chosen.set("sort", (sorted.down ? "-" : "") + sorted.by);
    history.replaceState(null, "", `#${chosen}`);
  };

  const read = () => {
    if (!location.hash.includes("=")) return;
    const chosen = new URLSearchParams(location.hash.slice(1));
    for (const name of ["find", "split", "show"]) if (form[name]) form[name].value = chosen.get(name) ?? "";
    if (form.show.selectedIndex < 0) form.show.value = "";
    const by = chosen.get("sort") ?? "class";
    if (columns.includes(by.replace("-", ""))) Object.assign(sorted, { by: by.replace("-", ""), down: by[0] === "-" });
    sort();
    show();
  };

  for (const head of heads) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const by = head.dataset.by;
      // The first click on a column of numbers sorts the largest first.
      Object.assign(sorted, { by, down: sorted.by === by ? !sorted.down : head.className === "n" });
      sort();
      note();
    });
  }
  form.addEventListener("input", () => {
    show();
    note();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", read);
  form.hidden = false;
  sort();
  show();
  read();
})();
