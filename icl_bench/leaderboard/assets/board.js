// The table of a suite: its columns, rows, order and filters, and which methods are compared.

// Rows of the suite on the page, in their first order, and their columns.
let rows = [];
let columns = [];

function marksOf(marks) {
  const shown = marks.map((mark) => make("span", { class: "mark", "data-mark": mark }, mark));
  return make("span", { class: "marks" }, ...shown);
}

const whole = (value) => (value === null ? DASH : value.toLocaleString("en-US"));

/** A cell of an environment or a setting: value, worst draw, rank in a frame or coverage. */
function scoreCell(cell) {
  if (!cell) return make("td", { class: "number empty" }, DASH);
  const [value, half] = cell.text.split(" ± ");
  const td = make("td", { class: "number" }, make("span", { class: "value" }, value));
  if (half) td.append(make("span", { class: "half" }, ` ± ${half}`));
  if (cell.worst) td.append(make("span", { class: "half" }, ` / ${cell.worst}`));
  if (cell.partial) td.append(make("span", { class: "partial" }, `partial: ${cell.partial}`));
  if (cell.rank) {
    const kind = cell.rank === 1 ? "rank first" : "rank";
    const said = make("span", { class: "hidden" }, " rank ");
    td.append(said, make("span", { class: kind }, String(cell.rank)));
  }
  return td;
}

/**
 * Columns of a board: key, head, what a row is sorted by (null is always last), and its cell.
 * A column of scores is sorted by rank alone: the data do not order the rows of one rank. It is left
 * out if no row has it.
 */
function columnsOf(suite, domain) {
  const inDomain = (row, field) => (suite.text && row.entry ? row[field][domain] : row[field]);
  const text = (key, head, of) => ({
    key,
    head,
    by: (row) => (of(row) === DASH ? null : of(row).toLowerCase()),
    cell: (row) => make("td", null, of(row)),
  });
  const count = (key, head, by, shown) => ({
    key,
    head,
    by,
    number: true,
    cell: (row) => make("td", { class: "number" }, shown(row)),
  });
  const meanRank = (row) => (row.entry ? inDomain(row, "meanRank") : null);
  const scores = suite.columns.map((column) => ({
    key: column.id,
    head: suite.text ? `${column.name} (${column.tasks[domain]})` : column.name,
    number: true,
    ranked: true,
    has: (row) => inDomain(row, "cells")[column.id],
    by: (row) => inDomain(row, "cells")[column.id]?.rank ?? null,
    cell: (row) => scoreCell(inDomain(row, "cells")[column.id]),
  }));
  const vectorOnly = [text("taxonomy", "Taxonomy", (row) => row.taxonomy)];
  return [
    {
      key: "method",
      head: "Method",
      by: (row) => row.title.toLowerCase(),
      cell: (row) => methodCell(suite, row),
    },
    ...(suite.text ? [text("view", "View", (row) => row.view)] : []),
    count(
      "mean-rank",
      "Mean rank",
      (row) => meanRank(row) && Number(meanRank(row)),
      (row) => meanRank(row) || DASH,
    ),
    ...scores,
    ...(suite.text ? [] : [text("bias", "Inductive bias", (row) => row.bias)]),
    count(
      "seeds",
      "Seeds",
      (row) => row.seeds.length || null,
      (row) => row.seedsText,
    ),
    count(
      "parameters",
      "Parameters",
      (row) => row.parameters,
      (row) => whole(row.parameters),
    ),
    count(
      "state-size",
      "State size",
      (row) => row.stateSize,
      (row) => whole(row.stateSize),
    ),
    count(
      "gpu-hours",
      "GPU-hours",
      (row) => row.gpuHours,
      (row) => whole(row.gpuHours),
    ),
    ...(suite.text ? [] : vectorOnly),
  ];
}

/** Rows of a board: entries by mean rank, those with partial columns alone, then papers'. */
function rowsOf(suite, domain) {
  const entries = suite.entries.map((entry) => ({ ...entry, entry }));
  const unknown = { seeds: [], seedsText: DASH, parameters: null, stateSize: null, gpuHours: null };
  const reported = suite.reported.map((row) => ({
    ...{ ...unknown, taxonomy: DASH, authors: "", name: "", kind: "reported", marks: ["reported"] },
    ...row,
  }));
  if (!suite.text) return [...entries, ...reported];
  const place = new Map(suite.order[domain].map((name, i) => [name, i]));
  const placeOf = (row) => place.get(row.name) ?? place.size;
  const there = entries.filter((row) => Object.keys(row.cells[domain]).length);
  there.sort((a, b) => placeOf(a) - placeOf(b));
  return [...there, ...reported.filter((row) => row.domain === domain)];
}

function methodCell(suite, row) {
  const title = make("bdi", null, row.title);
  const lines = make("span", { class: "title" });
  const box = make("div", { class: "method" }, lines);
  if (row.entry) {
    row.box = make("input", { type: "checkbox", "aria-label": `Compare ${row.title}` });
    row.box.addEventListener("change", () => choose(row.name, row.box.checked));
    row.swatch = make("span", { class: "swatch", "aria-hidden": "true" });
    box.prepend(make("span", { class: "pick" }, row.box, row.swatch));
    lines.append(make("a", { href: entryAddress(suite, row) }, title));
  } else {
    lines.append(title, make("span", { class: "source" }, row.source));
  }
  if (row.marks.length) lines.append(marksOf(row.marks));
  return make("th", { scope: "row" }, box);
}

/** Build the table anew: another suite or another domain. */
function buildTable() {
  rows = rowsOf(view.suite, view.domain);
  columns = columnsOf(view.suite, view.domain).filter(
    ({ ranked, has }) => !ranked || rows.some(has),
  );
  if (!columns.some(({ key }) => key === view.sort)) {
    view.sort = "mean-rank";
    view.descending = false;
  }
  const heads = columns.map((column) => {
    const button = make("button", { type: "button" }, column.head);
    button.addEventListener("click", () => sortBy(column.key));
    column.th = make("th", { scope: "col", class: column.number ? "number" : null }, button);
    return column.th;
  });
  for (const row of rows) {
    row.tr = make("tr", { "data-kind": row.kind }, ...columns.map((column) => column.cell(row)));
    const { title, name, bias, view: said, authors, marks, taxonomy } = row;
    row.words = [title, name, bias, said, authors, ...marks, taxonomy].join(" ").toLowerCase();
  }
  byId("rows").tHead.replaceChildren(make("tr", null, ...heads));
  byId("rows").tBodies[0].replaceChildren(...rows.map((row) => row.tr));
}

/** Sort, filter and mark the rows that there are. */
function updateTable() {
  const column = columns.find(({ key }) => key === view.sort);
  const sorted = sortedRows(column);
  const words = view.query.toLowerCase().split(/\s+/);
  let before;
  for (const row of sorted) {
    const wanted = view.kinds[row.kind] && words.every((word) => row.words.includes(word));
    row.tr.hidden = !wanted || (view.replayed && !row.marks.includes("replayed"));
    const value = column.by(row);
    if (row.tr.hidden) continue;
    row.tr.classList.toggle(
      "next",
      Boolean(column.ranked) && before !== undefined && value !== before,
    );
    before = value;
  }
  byId("rows").tBodies[0].append(...sorted.map((row) => row.tr));
  for (const { key, th } of columns) {
    if (key === view.sort)
      th.setAttribute("aria-sort", view.descending ? "descending" : "ascending");
    else th.removeAttribute("aria-sort");
  }
  updateChosen();
  const shown = rows.filter((row) => !row.tr.hidden).length;
  byId("state").textContent = `${shown} of ${rows.length} rows, ${orderText(column)}`;
}

function sortedRows(column) {
  const place = new Map(rows.map((row, i) => [row, i]));
  const title = (row) => row.title.toLowerCase();
  const compare = (a, b) => (a < b ? -1 : Number(a > b));
  return [...rows].sort((a, b) => {
    const [x, y] = [column.by(a), column.by(b)];
    if (!a.entry || !b.entry)
      return Number(!a.entry) - Number(!b.entry) || place.get(a) - place.get(b);
    if (x === null || y === null)
      return Number(x === null) - Number(y === null) || place.get(a) - place.get(b);
    const order = compare(x, y) * (view.descending ? -1 : 1);
    const tie = column.ranked ? compare(title(a), title(b)) : place.get(a) - place.get(b);
    return order || tie;
  });
}

function orderText(column) {
  const way = view.descending ? "descending" : "ascending";
  if (column.ranked) {
    return (
      `by rank in ${column.head}, ${way}. Rows of one rank stand in the order of the alphabet, ` +
      "and rows of different ranks need not be separated by the data either."
    );
  }
  if (column.key === "mean-rank")
    return `by mean rank, ${way}; equal ones in the order of the alphabet.`;
  return `by ${column.head.toLowerCase()}, ${way}.`;
}

function sortBy(key) {
  view.descending = view.sort === key && !view.descending;
  view.sort = key;
  changed();
}

// --- which methods are compared

function choose(name, chosen) {
  const { chosen: names } = view;
  // A freed colour goes to the next method, so that the others keep theirs.
  const slot = names.indexOf(chosen ? "" : name);
  if (slot < 0) names.push(name);
  else names[slot] = chosen ? name : "";
  while (names.at(-1) === "") names.pop();
  changed();
  drawBoard();
}

function updateChosen() {
  const count = view.chosen.filter(Boolean).length;
  for (const row of rows) {
    if (!row.entry) continue;
    const slot = view.chosen.indexOf(row.name);
    row.box.checked = slot >= 0;
    row.box.disabled = slot < 0 && count >= MAX_CHOSEN;
    row.swatch.hidden = slot < 0;
    if (slot >= 0) paint(row.swatch, slot);
  }
  byId("chosen").textContent = count
    ? `${count} of at most ${MAX_CHOSEN} methods, chosen by the boxes in the table.`
    : "";
  byId("clear").hidden = !count;
}
