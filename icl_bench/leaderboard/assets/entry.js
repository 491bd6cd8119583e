// The page of one entry: all that was said about it, found about it, and how to run it again.

function section(title, ...children) {
  return make("section", null, make("h3", null, title), ...children);
}

function facts(pairs) {
  const rows = pairs.map(([name, value]) =>
    make("div", null, make("dt", null, name), make("dd", null, value)),
  );
  return make("dl", { class: "facts" }, ...rows);
}

/** A table whose first columns are texts and whose others are numbers. */
function plainTable(label, heads, body, texts) {
  const kind = (i) => (i < texts ? null : "number");
  const th = heads.map((head, i) => make("th", { scope: "col", class: kind(i) }, head));
  const trs = body.map((cells) => {
    const rest = cells.slice(1).map((cell, i) => make("td", { class: kind(i + 1) }, cell ?? DASH));
    return make("tr", null, make("th", { scope: "row" }, cells[0]), ...rest);
  });
  const table = make(
    "table",
    null,
    make("thead", null, make("tr", null, ...th)),
    make("tbody", null, ...trs),
  );
  return make(
    "div",
    { class: "table-box", role: "region", tabindex: 0, "aria-label": label },
    table,
  );
}

function external(url) {
  return make("a", { href: url, rel: "noopener noreferrer" }, url);
}

function showEntry(suite, entry) {
  const folder = `${suite.name}/${encodeURIComponent(entry.name)}`;
  const title = make("h2", { id: "entry-title", tabindex: -1 }, make("bdi", null, entry.title));
  const back = make("a", { href: boardAddress(suite), class: "back" }, `← ${suite.name}`);
  const told = [...entry.facts, ["Meta-training seeds", entry.seeds.join(", ")]];
  if (suite.text) told.splice(2, 0, ["View", entry.view]);
  if (entry.url?.startsWith("https://")) told.push(["Address", external(entry.url)]);
  const files = make(
    "a",
    { href: `${folder}/entry.toml` },
    `${suite.name}/${entry.name}/entry.toml`,
  );
  told.push(["Handed in", files]);
  const article = byId("entry");
  article.dataset.name = entry.name;
  article.replaceChildren(
    back,
    make("div", { class: "entry-head" }, title, marksOf(entry.marks)),
    ...entry.flags.map((flag) => make("p", { class: "note" }, `Needs a replay: ${flag}`)),
    facts(told),
    ...(suite.text ? textScores(suite, entry) : vectorScores(suite, entry)),
    ...papersSection(suite, entry),
    replaySection(suite, entry),
    section("Fingerprints", fingerprintTable(suite, entry)),
  );
  if (!suite.text) drawEntry(suite, entry);
}

function vectorScores(suite, entry) {
  const there = suite.columns.filter((column) => entry.cells[column.id]);
  const seeds = entry.seeds.length > 1 ? entry.seeds : [];
  const heads = ["Environment", "Rank", "Accuracy (%)", ...seeds.map((seed) => `Seed ${seed}`)];
  const optional = [
    ["Over seeds", "overSeeds"],
    ["Larger hand-in", "larger"],
  ];
  const cellsOf = (column) => entry.cells[column.id];
  const more = optional.filter(([, key]) => there.some((column) => cellsOf(column)[key]));
  const body = there.map((column) => {
    const cell = cellsOf(column);
    const extra = more.map(([, key]) => cell[key]);
    return [column.id, String(cell.rank), cell.text, ...(seeds.length ? cell.seeds : []), ...extra];
  });
  const summaries = there.map((column) => [column.id, ...cellsOf(column).summary]);
  const losses = there.map((column) => [column.id, ...cellsOf(column).logLoss]);
  const stepHeads = ["Environment", ...suite.steps.map((step) => `Step ${step}`)];
  const curveHeads = [
    ...stepHeads,
    "Area",
    ...suite.thresholds.map((threshold) => `To ${threshold} %`),
  ];
  return [
    section(
      "Scores at the last step",
      plainTable("Scores at the last step", [...heads, ...more.map(([head]) => head)], body, 1),
      explanation(more.map(([, key]) => MEANINGS[key]).join(" ")),
    ),
    section(
      "Learning curves",
      make("div", { id: "entry-plot", class: "plot" }),
      plainTable("Summaries of the learning curves", curveHeads, summaries, 1),
      explanation(
        "Accuracy in % at a step, that is after so many labelled examples; the area under the curve, " +
          "which is the mean over all steps; ± is the 95 % interval over tasks. Then the number of " +
          "examples until the accuracy reaches and holds a threshold.",
      ),
    ),
    section("Log loss (nats)", plainTable("Log loss by step", stepHeads, losses, 1)),
  ];
}

const MEANINGS = {
  overSeeds: "Over seeds: mean ± the 95 % t interval over meta-training seeds.",
  larger: "Larger hand-in: on more tasks, for a narrower interval; not ranked.",
};

const explanation = (text) => make("p", { class: "quiet-text" }, text);

function drawEntry(suite, entry) {
  const there = suite.columns.filter((column) => entry.cells[column.id]);
  const lines = there.map((column, slot) => ({
    title: column.name,
    slot,
    cell: entry.cells[column.id],
  }));
  const chances = [...new Set(there.map((column) => column.chance))];
  const name = `Learning curves of ${entry.title} on ${lines.length} environments, accuracy in %`;
  const chance = chances.length === 1 ? chances[0] : null;
  drawPlot(
    byId("entry-plot"),
    curvesPlot(name, lines, suite.length, chance, "Nothing was handed in."),
  );
}

function textScores(suite, entry) {
  return suite.domains.map(([domain, words]) => {
    const cells = entry.cells[domain];
    const there = suite.columns.filter((column) => cells[column.id]);
    const over = there.some((column) => cells[column.id].overSeeds);
    const heads = [
      "Setting",
      "Rank",
      "Mean (%)",
      "Worst (%)",
      ...entry.seeds.map((seed) => `Seed ${seed}`),
    ];
    const body = there.map((column) => {
      const cell = cells[column.id];
      const rank = cell.rank ? String(cell.rank) : cell.partial && `partial: ${cell.partial}`;
      return [
        column.id,
        rank,
        cell.text,
        cell.worstText,
        ...cell.seeds,
        ...(over ? [cell.overSeeds] : []),
      ];
    });
    const title = `Scores on ${words}`;
    return section(title, plainTable(title, over ? [...heads, "Over seeds"] : heads, body, 1));
  });
}

function papersSection(suite, entry) {
  if (!entry.papers.length) return [];
  const heads = [
    "Paper",
    suite.text ? "Setting" : "Environment",
    "Paper (%)",
    "Ours (%)",
    "Ours − paper",
  ];
  const told = explanation(
    "Papers with a method of this title. Differences in percentage points; ± is our interval alone, " +
      "for papers give none for theirs.",
  );
  return [section("Beside papers", plainTable("Beside papers", heads, entry.papers, 2), told)];
}

const TUNED =
  "It was so much better on the frozen episodes than on fresh ones that it was tuned to them.";

function replaySection(suite, entry) {
  const command = make(
    "pre",
    { tabindex: 0 },
    make("code", null, `python -m baselines.replay leaderboards/${suite.name}/${entry.name}`),
  );
  const how = make(
    "p",
    null,
    "Run its checkpoints again, on the frozen episodes and on fresh ones:",
  );
  const { replay } = entry;
  if (!replay)
    return section(
      "Replay",
      make("p", null, "No replay of these files is on record."),
      how,
      command,
    );
  const told = replay.same
    ? "The checkpoints were run again and gave the handed-in predictions, but for rounding."
    : "The checkpoints were run again and gave other predictions than those handed in.";
  const heads = [
    "Seed",
    "Environment",
    "Differing (%)",
    "Frozen (%)",
    "Fresh (%)",
    "Gap",
    "p at step 0",
  ];
  const about = [
    ["Version", replay.version],
    ["Digest of the files", make("code", null, replay.digest)],
  ];
  const kinds = replay.taxonomy.map(([env, what]) => [`Taxonomy on ${env}`, what]);
  return section(
    "Replay",
    make("p", null, told),
    ...(replay.tuned ? [make("p", { class: "note" }, TUNED)] : []),
    plainTable("Replay", heads, replay.rows, 2),
    explanation(
      "Gap: frozen minus fresh in percentage points, with its 95 % interval. Of 40 gaps of an " +
        "honest learner about one lies above zero, and its seeds share the luck of the frozen " +
        "tasks: it is marked only where a gap is clear at 99.9 % for all of them together.",
    ),
    facts([...kinds, ...about]),
    how,
    command,
  );
}

function fingerprintTable(suite, entry) {
  const found = suite.text
    ? entry.envs
        .filter((env) => entry.cells.all[env.split("-")[0]])
        .map((env) => [env, suite.fingerprints[env]])
    : suite.columns
        .filter(({ id }) => entry.cells[id])
        .map(({ id, fingerprint }) => [id, fingerprint]);
  const body = found.map(([env, fingerprint]) => [env, make("code", null, fingerprint)]);
  return plainTable(
    "Fingerprints",
    ["Environment", "SHA-256 of all that changes a number"],
    body,
    2,
  );
}
