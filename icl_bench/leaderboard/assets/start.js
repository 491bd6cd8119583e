// From the address to the page, and from what is clicked to the address.

let timer = 0;
// The address of each suite's board as it was last seen, for the way back from an entry.
const lastAddress = new Map();

const boardAddress = (suite) => lastAddress.get(suite.name) || `#/${suite.name}`;

/** Show what the address asks for; returns what the focus belongs to. */
function route() {
  const came = byId("entry").hidden ? "" : byId("entry").dataset.name;
  const [path, parameters] = location.hash.replace(/^#\/?/, "").split("?", 2);
  const [suiteName, entryName] = path.split("/").map(decoded);
  const suite = suites.get(suiteName) || suites.values().next().value;
  if (!suite) return byId("main"); // a page without suites
  const entry = suites.get(suiteName)?.byName.get(entryName);
  clearTimeout(timer);
  const unknown = suiteName && (!suites.has(suiteName) || (entryName !== undefined && !entry));
  byId("message").hidden = !unknown;
  byId("message").textContent =
    `There is no ${[suiteName, entryName].filter(Boolean).join("/")} here.`;
  clearPlot(byId("plot"));
  if (byId("entry-plot")) clearPlot(byId("entry-plot"));
  byId("board").hidden = Boolean(entry);
  byId("entry").hidden = !entry;
  for (const link of byId("suites").querySelectorAll("a")) {
    if (link.hash === `#/${suite.name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${entry ? `${entry.title}, ` : ""}${suite.name}: icl_bench leaderboards`;
  if (entry) {
    showEntry(suite, entry);
    return byId("entry-title");
  }
  view = viewOf(suite, new URLSearchParams(parameters || ""));
  showBoard();
  // Back from an entry, to its row.
  return (
    rows.find((row) => row.entry && row.name === came)?.tr.querySelector("a") || byId("board-title")
  );
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function showBoard() {
  const { suite } = view;
  byId("board-title").textContent = suite.title;
  byId("protocol").textContent = suite.protocol;
  byId("board").classList.toggle("of-text", suite.text);
  byId("curves-title").textContent = suite.text ? "Scores with their intervals" : "Learning curves";
  byId("query").value = view.query;
  for (const [kind, shown] of Object.entries(view.kinds)) byId(`show-${kind}`).checked = shown;
  byId("only-replayed").checked = view.replayed;
  if (suite.text) fillSelect(byId("domain"), suite.domains, view.domain);
  else fillSelect(byId("env"), environmentsOf(suite), view.env);
  const files = ["board.csv", "board.json"];
  if (!suite.text) files.push("curves.csv");
  if (suite.reported.length) files.push("papers.csv");
  const links = files.map((file) => make("a", { href: `${suite.name}/${file}` }, file));
  byId("files").replaceChildren(
    "All numbers: ",
    ...links.flatMap((link, i) => (i ? [", ", link] : [link])),
  );
  showNotRanked(suite);
  buildTable();
  updateTable();
  drawBoard();
  lastAddress.set(suite.name, addressOf(view));
}

function fillSelect(select, options, value) {
  select.replaceChildren(...options.map(([key, text]) => make("option", { value: key }, text)));
  select.value = value;
}

function showNotRanked(suite) {
  byId("not-ranked").hidden = !suite.notRanked.length;
  const items = suite.notRanked.map(({ name, title, reasons }) => {
    const shown = make("bdi", null, title);
    return make("li", null, shown, ` (${name}): ${reasons.join("; ")}`);
  });
  byId("not-ranked")
    .querySelector("ul")
    .replaceChildren(...items);
}

function drawBoard() {
  const { suite, domain, env } = view;
  const chosen = view.chosen.map((name, slot) => ({ entry: suite.byName.get(name), slot }));
  const lines = chosen
    .filter(({ entry }) => entry)
    .map(({ entry, slot }) => ({
      title: entry.title,
      href: entryAddress(suite, entry),
      slot,
      entry,
    }));
  const titles = lines.map((line) => line.title).join(", ");
  if (suite.text) {
    const words = suite.domains.find(([name]) => name === domain)[1];
    const there = lines.map((line) => ({ ...line, cells: line.entry.cells[domain] }));
    const name = `Scores in % on ${words} of ${titles}`;
    const empty = "Choose methods by their boxes in the table above.";
    drawPlot(byId("plot"), settingsPlot(name, there, suite.columns, empty));
    return;
  }
  const column = suite.columns.find(({ id }) => id === env);
  const there = lines
    .map((line) => ({ ...line, cell: line.entry.cells[env] }))
    .filter((line) => line.cell);
  const name = `Learning curves on ${column.id} with 95 % bands, accuracy in %: ${there.map((line) => line.title).join(", ")}`;
  const empty = lines.length
    ? `None of the chosen methods was handed in for ${column.id}.`
    : "Choose methods by their boxes in the table above.";
  drawPlot(byId("plot"), curvesPlot(name, there, suite.length, column.chance, empty));
}

function addressOf(shown) {
  const parameters = parametersOf(shown);
  return `#/${shown.suite.name}${parameters && `?${parameters}`}`;
}

/** After a change of the view: the table at once, the address a little later, for typing. */
function changed() {
  updateTable();
  lastAddress.set(view.suite.name, addressOf(view));
  clearTimeout(timer);
  timer = setTimeout(() => history.replaceState(null, "", addressOf(view)), 150);
}

function nameTheme() {
  byId("theme").textContent = themes.isDark() ? "Light theme" : "Dark theme";
}

/** Canvases do not follow the style sheet by themselves. */
function recolour() {
  nameTheme();
  if (byId("board").hidden) {
    route();
  } else {
    updateChosen();
    drawBoard();
  }
}

byId("suites").append(
  ...data.suites.map((suite) =>
    make("li", null, make("a", { href: `#/${suite.name}` }, suite.name)),
  ),
);
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("query").addEventListener("input", () => {
  view.query = byId("query").value;
  changed();
});
for (const kind of ["method", "reference", "reported"]) {
  byId(`show-${kind}`).addEventListener("change", () => {
    view.kinds[kind] = byId(`show-${kind}`).checked;
    changed();
  });
}
byId("only-replayed").addEventListener("change", () => {
  view.replayed = byId("only-replayed").checked;
  changed();
});
byId("domain").addEventListener("change", () => {
  view.domain = byId("domain").value;
  buildTable();
  changed();
  drawBoard();
});
byId("env").addEventListener("change", () => {
  view.env = byId("env").value;
  changed();
  drawBoard();
});
byId("clear").addEventListener("click", () => {
  view.chosen = [];
  changed();
  drawBoard();
});
byId("theme").addEventListener("click", () => {
  const theme = themes.isDark() ? "light" : "dark";
  themes.set(theme);
  themes.store(theme);
  recolour();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address is that of the board
  byId("main").focus();
});
byId("scorer").textContent = data.scorer;
addEventListener("hashchange", () => route().focus());
nameTheme();
route();
