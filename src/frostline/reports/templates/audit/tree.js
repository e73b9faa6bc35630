// The tree. Rows are made when their parent is opened, CHUNK of them at a time.
const rows = new Map();
const tree = byId("tree");

function dot(i) {
  const what = colour(i);
  const leaks = hot[i] === 2 && here(i) < 2;
  return make("i", `dot ${what}${leaks ? " drips" : ""}`, make("span", "unseen", `${WORDS[what]}${leaks ? ", a leak below" : ""} `));
}

function row(tag, i) {
  const name = make("bdi", "own", own(i) || (i ? "·" : data.model));
  const made = make(tag, "row", dot(i), make("code", "", name), " ", make("bdi", "type", i || data.name[i] ? type(i) : ""));
  const tags = make("span", "tags");
  if (held.has(i)) tags.append(make("span", "tag held", "held"), " ");
  if (data.training[i] && (here(i) || found[i])) tags.append(make("span", "tag", "training"), " ");
  if (hot[i] > here(i) && !many[i]) tags.append(make("span", `tag ${hot[i] === 2 ? "now" : "later"}`, hot[i] === 2 ? "leak below" : "leak after train()"), " ");
  if (many[i]) tags.append(make("span", `tally ${SEVERITIES[worst[i]]}`, number.format(many[i]), make("span", "unseen", ` ${many[i] === 1 ? "finding" : "findings"}, worst: ${WORDS[SEVERITIES[worst[i]]]} `)));
  made.append(tags, make("span", "size", data.parameters[i] ? short(data.parameters[i]) : "", make("span", "unseen", data.parameters[i] ? " parameters" : "")));
  if (shown && shown[i] < 2) made.classList.add("aside");
  return made;
}

function item(i) {
  const has = kidsOf(i).length || found[i] || here(i);
  const made = make("li", "");
  if (has) {
    const details = make("details", "", row("summary", i));
    details.addEventListener("toggle", () => details.open && fill(i));
    made.append(details);
  } else {
    made.append(row("div", i));
  }
  made.dataset.at = i;
  rows.set(i, { li: made, filled: false, low: 0, high: 0 });
  return made;
}

function fill(i) {
  const entry = rows.get(i);
  const details = entry.li.firstElementChild;
  if (entry.filled || details.tagName !== "DETAILS") return;
  entry.filled = true;
  const about = notes(i);
  if (about) details.append(about);
  if (kidsOf(i).length) {
    entry.list = make("ul", "");
    details.append(entry.list);
    stretch(i, 0);
  }
}

// Make the rows of children around position `at`, with buttons for those before and after.
function stretch(i, at) {
  const entry = rows.get(i);
  const below = kidsOf(i);
  const start = Math.floor(at / CHUNK) * CHUNK;
  const joined = entry.high > 0 && (start === entry.high || start + CHUNK === entry.low);
  if (!joined) {
    entry.low = entry.high = start;
    entry.list.replaceChildren();
  }
  all(":scope > li.more", entry.list).forEach((more) => more.remove());
  const fresh = below.slice(start, start + CHUNK).map(item);
  if (start < entry.low) entry.list.prepend(...fresh);
  else entry.list.append(...fresh);
  entry.low = Math.min(entry.low, start);
  entry.high = Math.max(entry.high, start + fresh.length);
  if (entry.low > 0) entry.list.prepend(more(i, entry.low - CHUNK, `${number.format(entry.low)} before these: show ${CHUNK}`));
  const left = below.length - entry.high;
  if (left > 0) entry.list.append(more(i, entry.high, `${number.format(left)} more: show ${Math.min(CHUNK, left)}`));
}

function more(i, at, text) {
  return make("li", "more", button("plain", text, () => stretch(i, at)));
}

// What is to be told at a module: its tensors that change, and its findings.
function notes(i) {
  if (!found[i] && !here(i)) return null;
  const made = make("div", "notes");
  for (const [when, names] of [["Will change", data.now[i]], ["Will change after model.train()", data.later[i]]]) {
    if (!names) continue;
    const told = make("p", "", make("b", "", `${when}: `));
    names.slice(0, CHUNK).forEach((name, at) => told.append(at ? ", " : "", make("code", "", make("bdi", "", name))));
    if (names.length > CHUNK) told.append(` and ${number.format(names.length - CHUNK)} more`);
    made.append(told);
  }
  for (const finding of (found[i] || []).slice(0, CHUNK)) made.append(note(i, finding));
  return made;
}

function note(i, [, group, where, message, mend]) {
  const severity = groupSeverity[group];
  const place = data.texts[where] === data.name[i] ? [] : [make("code", "", make("bdi", "", data.texts[where])), ": "];
  const made = make("div", `note-at ${severity}`,
    make("p", "", make("span", `badge ${severity}`, WORDS[severity]), " ", make("b", "", groupCode[group]), " ",
      ...place, make("bdi", "", data.texts[message])));
  if (data.texts[mend]) {
    const code = make("pre", "", make("code", "", data.texts[mend]));
    code.tabIndex = 0;
    const copy = make("button", "copy", "Copy");
    copy.type = "button";
    copy.setAttribute("aria-label", `Copy the mend of ${groupCode[group]}`);
    made.append(make("div", "mend", copy, code));
  }
  return made;
}

function open(i) {
  const entry = rows.get(i);
  if (!entry || entry.li.firstElementChild.tagName !== "DETAILS") return;
  fill(i);
  entry.li.firstElementChild.open = true;
}

// Open level by level while the rows made stay few; under a filter only on the way to matches.
function grow(budget, wanted = () => true) {
  const queue = [0];
  while (queue.length && rows.size <= budget) {
    const i = queue.shift();
    if (!rows.has(i) || (shown && !toward[i])) continue;
    const below = kidsOf(i);
    const dear = rows.size + Math.min(below.length, CHUNK) > budget;
    if (!below.length || (i && (dear || !wanted(i)))) continue;
    open(i);
    queue.push(...below.slice(0, CHUNK));
  }
}

function plant(budget) {
  rows.clear();
  const nothing = shown && !shown[0];
  tree.replaceChildren(make("ul", "", ...(nothing ? [] : [item(0)])));
  if (!nothing) grow(budget);
}
