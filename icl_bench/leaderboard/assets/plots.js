// Plots by uPlot, each with a slider that reads its values out and a table that holds them all:
// a canvas says nothing to those who do not see it.

const plots = new Map(); // box → what must go before another plot is drawn there

const tokens = () => getComputedStyle(document.documentElement);
const colour = (slot) =>
  tokens()
    .getPropertyValue(`--line-${(slot % MAX_CHOSEN) + 1}`)
    .trim();
const ink = (name) => tokens().getPropertyValue(name).trim();
// Colour is never the only difference: the second half of the lines is dashed.
const dash = (slot) => (slot % MAX_CHOSEN < MAX_CHOSEN / 2 ? [] : [7, 4]);
const tenths = (value) => (value / 10).toFixed(1);
const percents = (values) => values.map((value) => value / 10);

function swatch(slot) {
  const element = make("span", { class: "swatch", "aria-hidden": "true" });
  paint(element, slot);
  return element;
}

function paint(element, slot) {
  element.style.borderTopColor = colour(slot);
  element.style.borderTopStyle = dash(slot).length ? "dashed" : "solid";
}

/**
 * Draw a plot in a box, in place of what was there.
 *
 * name     what it shows, in one line
 * head     what the slider goes through
 * points   names of the slider's points; start is the first one shown
 * lines    title, slot (its colour), href, and for each point a text, or null
 * options  of uPlot; data: its data; where: point → x; nearest: x → point
 */
function drawPlot(box, plot) {
  clearPlot(box);
  if (!plot.lines.length) {
    box.replaceChildren(make("p", { class: "empty-plot" }, plot.empty));
    return;
  }
  const canvas = make("div", { class: "canvas", role: "img", "aria-label": plot.name });
  const slider = make("input", { type: "range", min: 0, max: plot.points.length - 1, step: 1 });
  const readout = make("table", { class: "readout" }, make("caption"), make("tbody"));
  const live = make("div", { class: "live", "aria-live": "polite" }, readout);
  const all = make("details", { class: "values" }, make("summary", null, "All values as a table"));
  all.addEventListener(
    "toggle",
    () => all.open && all.children.length < 2 && all.append(valuesTable(plot)),
  );
  const label = make("label", { class: "slider" }, plot.head, slider);
  label.hidden = plot.points.length < 2;
  box.replaceChildren(canvas, label, live, all);

  let shown = -1;
  const show = (point) => {
    if (point === shown) return;
    shown = point;
    slider.value = point;
    slider.setAttribute("aria-valuetext", plot.points[point]);
    readout.caption.textContent = plot.sentence(point);
    readout.tBodies[0].replaceChildren(...plot.lines.map((line) => readoutRow(line, point)));
  };
  show(plot.start);
  const width = () => Math.max(280, Math.floor(canvas.clientWidth));
  const height = () => (width() < 560 ? 280 : 380);
  const follow = (u) => {
    const { left } = u.cursor;
    if (left >= 0) show(plot.nearest(u.posToVal(left, "x")));
  };
  const options = { ...plot.options, width: width(), height: height() };
  options.hooks = { ...options.hooks, setCursor: [follow] };
  const u = new uPlot(options, plot.data, canvas);
  slider.addEventListener("input", () => {
    show(Number(slider.value));
    const left = u.valToPos(plot.where(shown), "x");
    u.setCursor({ left, top: u.over.clientHeight / 2 });
  });
  const observer = new ResizeObserver(() => {
    if (canvas.clientWidth && width() !== u.width) u.setSize({ width: width(), height: height() });
  });
  observer.observe(canvas);
  plots.set(box, { u, observer });
}

function clearPlot(box) {
  const drawn = plots.get(box);
  if (!drawn) return;
  drawn.observer.disconnect();
  drawn.u.destroy();
  plots.delete(box);
}

function titleOf(line) {
  const title = make("bdi", null, line.title);
  return line.href ? make("a", { href: line.href }, title) : title;
}

function readoutRow(line, point) {
  const name = make("th", { scope: "row" }, swatch(line.slot), titleOf(line));
  return make("tr", null, name, make("td", { class: "number" }, line.texts[point] ?? DASH));
}

function valuesTable(plot) {
  const heads = plot.lines.map((line) =>
    make("th", { scope: "col", class: "number" }, make("bdi", null, line.title)),
  );
  const body = plot.points.map((name, point) => {
    const cells = plot.lines.map((line) =>
      make("td", { class: "number" }, line.texts[point] ?? DASH),
    );
    return make("tr", null, make("th", { scope: "row" }, name), ...cells);
  });
  const head = make(
    "thead",
    null,
    make("tr", null, make("th", { scope: "col" }, plot.head), ...heads),
  );
  const table = make(
    "table",
    null,
    make("caption", null, plot.name),
    head,
    make("tbody", null, ...body),
  );
  const label = `Values: ${plot.name}`;
  return make(
    "div",
    { class: "table-box", role: "region", tabindex: 0, "aria-label": label },
    table,
  );
}

function axes(xLabel, more) {
  const [stroke, line] = [ink("--quiet"), ink("--line")];
  const look = {
    stroke,
    font: "12px system-ui, sans-serif",
    labelFont: "12px system-ui, sans-serif",
    grid: { stroke: line, width: 1 },
    ticks: { stroke: line, width: 1, size: 4 },
  };
  return [
    { ...look, label: xLabel, labelSize: 20, size: 32, ...more },
    { ...look, size: 50, values: (u, splits) => splits.map((value) => `${value} %`) },
  ];
}

const CURSOR = { y: false, drag: { x: false, y: false }, points: { size: 7 } };

/**
 * Learning curves with their 95 % bands.
 *
 * lines  title, slot, href, and a cell's curve, low and high in tenths of a percent
 */
function curvesPlot(name, lines, length, chance, empty) {
  const steps = Array.from({ length }, (_, step) => step);
  const series = [{}];
  const bands = [];
  const values = [steps];
  const still = { points: { show: false } };
  for (const { cell, slot } of lines) {
    if (cell.low) {
      series.push({ ...still, width: 0 }, { ...still, width: 0 });
      values.push(percents(cell.high), percents(cell.low));
      bands.push({ series: [series.length - 2, series.length - 1], fill: `${colour(slot)}24` });
    }
  }
  // After all bands, so that no band lies upon a line.
  for (const { cell, slot } of lines) {
    series.push({ ...still, stroke: colour(slot), width: 2, dash: dash(slot) });
    values.push(percents(cell.curve));
  }
  if (chance !== null) {
    series.push({ ...still, stroke: ink("--quiet"), width: 1, dash: [2, 4] });
    values.push(steps.map(() => chance / 10));
  }
  const text = ({ curve, low, high }, step) => {
    const mean = tenths(curve[step]);
    return low ? `${mean} (${tenths(low[step])} to ${tenths(high[step])})` : mean;
  };
  const told = lines.map((line) => ({
    ...line,
    texts: steps.map((step) => text(line.cell, step)),
  }));
  return {
    name: `${name}${chance === null ? "" : `; chance is ${tenths(chance)} %`}`,
    empty,
    head: "Step",
    points: steps.map(String),
    start: length - 1,
    lines: told,
    sentence: (step) =>
      `Accuracy in % at step ${step}: ${step} labelled examples seen (95 % interval)`,
    where: (step) => step,
    nearest: (x) => Math.min(length - 1, Math.max(0, Math.round(x))),
    data: values,
    options: {
      series,
      bands,
      cursor: CURSOR,
      legend: { show: false },
      scales: { x: { time: false, range: [0, length - 1] }, y: { range: [0, 100] } },
      axes: axes("labelled examples seen", {}),
    },
  };
}

/** Scores of methods on settings, as points with 95 % intervals. */
function settingsPlot(name, lines, columns, empty) {
  const gap = Math.min(0.18, 0.8 / Math.max(1, lines.length));
  const place = (i, line) => i + (line - (lines.length - 1) / 2) * gap;
  const xs = columns.flatMap((_, i) => lines.map((_, line) => place(i, line)));
  const at = (line, of) =>
    columns.flatMap((column) =>
      lines.map((_, other) =>
        other === line && lines[line].cells[column.id] ? of(lines[line].cells[column.id]) : null,
      ),
    );
  const means = lines.map((_, line) => at(line, (cell) => cell.value[0] / 10));
  const bounds = lines.map((_, line) => at(line, (cell) => cell.bounds && percents(cell.bounds)));
  const whiskers = (u, series) => {
    const { ctx } = u;
    ctx.save();
    ctx.strokeStyle = colour(lines[series - 1].slot);
    ctx.lineWidth = 2 * devicePixelRatio;
    ctx.beginPath();
    bounds[series - 1].forEach((bound, i) => {
      if (!bound) return;
      const x = u.valToPos(xs[i], "x", true);
      ctx.moveTo(x, u.valToPos(bound[0], "y", true));
      ctx.lineTo(x, u.valToPos(bound[1], "y", true));
    });
    ctx.stroke();
    ctx.restore();
  };
  const text = (cell) => {
    if (!cell) return null;
    const range = cell.bounds ? ` (${tenths(cell.bounds[0])} to ${tenths(cell.bounds[1])})` : "";
    return `${tenths(cell.value[0])}${range}${cell.partial ? ", partial" : ""}`;
  };
  const filled = (slot) => (dash(slot).length ? ink("--surface") : colour(slot));
  return {
    name,
    empty,
    head: "Setting",
    points: columns.map((column) => column.name),
    start: 0,
    lines: lines.map((line) => ({
      ...line,
      texts: columns.map((column) => text(line.cells[column.id])),
    })),
    sentence: (i) => `Mean over draws in % on ${columns[i].name} (95 % interval)`,
    where: (i) => i,
    nearest: (x) => Math.min(columns.length - 1, Math.max(0, Math.round(x))),
    data: [xs, ...means],
    options: {
      series: [
        {},
        ...lines.map(({ slot }) => ({
          paths: () => null,
          stroke: colour(slot),
          points: { show: true, size: 9, width: 2, stroke: colour(slot), fill: filled(slot) },
        })),
      ],
      cursor: { ...CURSOR, points: { show: false } },
      legend: { show: false },
      padding: [null, 48, null, null], // the last name is slanted
      hooks: { drawSeries: [whiskers] },
      scales: { x: { time: false, range: [-0.5, columns.length - 0.5] }, y: { range: [0, 100] } },
      axes: axes("", {
        splits: columns.map((_, i) => i),
        values: (u, splits) => splits.map((i) => columns[i].name),
        rotate: columns.length > 1 ? -55 : 0,
        size: columns.length > 1 ? 105 : 30,
        labelSize: 0,
        grid: { show: false },
      }),
    },
  };
}
