"use strict";
// The data, what the page shows of them, and the address that holds it.
// Strings of strangers become text nodes, never markup.

const DASH = "–";
const MAX_CHOSEN = 8;

const byId = (id) => document.getElementById(id);

/** An element with attributes (null leaves one out) and children: texts or nodes. */
function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const data = JSON.parse(byId("data").textContent);
const suites = new Map(data.suites.map((suite) => [suite.name, suite]));
for (const suite of data.suites) {
  suite.byName = new Map(suite.entries.map((entry) => [entry.name, entry]));
}

// What the board shows; the address holds all of it.
let view = null;

/** Environments that anything was handed in for; all if nothing was. */
function environmentsOf(suite) {
  const all = suite.columns.map(({ id, name }) => [id, name]);
  const found = all.filter(([id]) => suite.entries.some((entry) => entry.cells[id]));
  return found.length ? found : all;
}

function firstView(suite) {
  const order = suite.text ? suite.order.all : suite.entries.map((entry) => entry.name);
  return {
    suite,
    domain: "all",
    env: suite.text ? "" : environmentsOf(suite)[0][0],
    chosen: order.slice(0, 4), // by colour; "" is a colour that no method has
    sort: "mean-rank",
    descending: false,
    query: "",
    kinds: { method: true, reference: true, reported: false },
    replayed: false,
  };
}

/** The view as parameters of an address; what is as at first is left out. */
function parametersOf(shown) {
  const first = firstView(shown.suite);
  const found = new URLSearchParams();
  const put = (key, value, usual) => value !== usual && found.set(key, value);
  put("env", shown.env, first.env);
  put("domain", shown.domain, first.domain);
  put("show", shown.chosen.join(","), first.chosen.join(","));
  put("sort", (shown.descending ? "-" : "") + shown.sort, first.sort);
  put("q", shown.query, "");
  const kinds = (of) =>
    Object.keys(of)
      .filter((kind) => of[kind])
      .join(",");
  put("kinds", kinds(shown.kinds), kinds(first.kinds));
  put("replayed", String(shown.replayed), "false");
  return found.toString().replaceAll("%2C", ",");
}

/** The view that an address asks for; whatever there is not stays as at first. */
function viewOf(suite, parameters) {
  const shown = firstView(suite);
  const env = parameters.get("env");
  if (!suite.text && environmentsOf(suite).some(([id]) => id === env)) shown.env = env;
  const domain = parameters.get("domain");
  if (suite.text && suite.domains.some(([name]) => name === domain)) shown.domain = domain;
  if (parameters.has("show")) {
    const names = parameters.get("show").split(",").slice(0, MAX_CHOSEN);
    const known = (name, i) => suite.byName.has(name) && names.indexOf(name) === i;
    shown.chosen = names.map((name, i) => (known(name, i) ? name : ""));
  }
  const sort = parameters.get("sort") || shown.sort;
  shown.sort = sort.replace(/^-/, ""); // checked with the columns of the table
  shown.descending = sort.startsWith("-");
  shown.query = parameters.get("q") || "";
  if (parameters.has("kinds")) {
    const kinds = parameters.get("kinds").split(",");
    for (const kind of Object.keys(shown.kinds)) shown.kinds[kind] = kinds.includes(kind);
  }
  shown.replayed = parameters.get("replayed") === "true";
  return shown;
}

const entryAddress = (suite, entry) => `#/${suite.name}/${encodeURIComponent(entry.name)}`;
