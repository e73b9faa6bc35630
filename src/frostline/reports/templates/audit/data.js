const data = JSON.parse(document.getElementById("data").textContent);
const CHUNK = 100;      // rows of one list that are made at a time
const LEVELS = 6;       // rows of blocks in the strip
const THIN = 0.25;      // blocks under this many percent of the width are drawn together
const WIDE = 1;         // until they are as wide as this
const STATES = ["frozen", "trainable", "mixed", "none"];
const SEVERITIES = ["error", "warning", "info"];
const WORDS = { error: "error", warning: "warning", info: "info", none: "no parameters",
  frozen: "frozen", trainable: "trainable", mixed: "partly frozen", now: "will change",
  later: "changes after model.train()" };
const count = data.name.length;
const byId = (id) => document.getElementById(id);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const number = new Intl.NumberFormat("en");

// Text goes in by append(), which makes text nodes: no name is ever read as markup.
function make(tag, kind, ...inside) {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  element.append(...inside);
  return element;
}

function button(kind, text, act) {
  const made = make("button", kind, text);
  made.type = "button";
  made.addEventListener("click", act);
  return made;
}

function short(value) {
  for (const unit of ["", " K", " M", " B"]) {
    if (value < 999.5) return `${value >= 99.95 ? Math.round(value) : +value.toPrecision(3)}${unit}`;
    value /= 1000;
  }
  return `${+value.toPrecision(3)} T`;
}

const plural = (value, noun) => `${number.format(value)} ${noun}${value === 1 ? "" : "s"}`;

// The modules: parents come before their children.
const kids = Array.from({ length: count }, () => []);
const held = new Set(data.held);
const found = Array.from({ length: count }, () => null);
const worst = new Uint8Array(count).fill(9);   // worst severity at or below, 9 for none
const many = new Uint32Array(count);           // findings at or below
const hot = new Uint8Array(count);             // at or below: 2 will change, 1 after train()
const leaves = new Uint32Array(count);
const learns = new Float64Array(count);        // trainable parameters at or below, where mixed about
const here = (i) => (data.now[i] ? 2 : data.later[i] ? 1 : 0);
const groupSeverity = all(".finding").map((group) => group.dataset.severity);
const groupCode = all(".finding").map((group) => group.dataset.code);

for (const finding of data.findings) {
  const [at, group] = finding;
  (found[at] ||= []).push(finding);
  worst[at] = Math.min(worst[at], SEVERITIES.indexOf(groupSeverity[group]));
  many[at] += 1;
}
for (let i = 1; i < count; i++) kids[data.parent[i]].push(i);
for (let i = count - 1; i >= 0; i--) {
  leaves[i] ||= 1;
  if (data.state[i] === 1) learns[i] = data.parameters[i];
  hot[i] = Math.max(hot[i], here(i));
  if (i === 0) break;
  const above = data.parent[i];
  leaves[above] += leaves[i];
  learns[above] += learns[i];
  many[above] += many[i];
  worst[above] = Math.min(worst[above], worst[i]);
  hot[above] = Math.max(hot[above], hot[i]);
}

const state = (i) => STATES[data.state[i]];
const type = (i) => data.texts[data.type[i]];
const own = (i) => data.name[i].slice(data.own[i]);
const title = (i) => data.name[i] || data.model;
const colour = (i) => (here(i) === 2 ? "now" : here(i) === 1 ? "later" : state(i));
