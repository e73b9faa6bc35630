// The strip: a row of blocks for each level, a block for each module.
let focus = 0;
let width = "modules";

function weight(i) {
  return width === "modules" ? leaves[i] : data.parameters[i];
}

// A block for a module, or for several thin ones beside each other, the first of which is `i`.
function block(i, level, left, share, siblings = [i]) {
  const looks = new Set(siblings.map((one) => (hot[one] && !kids[one].length ? (hot[one] === 2 ? "now" : "later") : colour(one))));
  const what = looks.size === 1 ? [...looks][0] : looks.has("now") ? "now" : looks.has("later") ? "later" : "mixed";
  const several = siblings.length > 1 ? `${plural(siblings.length, "module")} from ` : "";
  const made = make("div", `block ${what}`, make("bdi", "", share < 2 ? "" : several + (own(i) || title(i))));
  if (siblings.some((one) => hot[one] === 2)) made.classList.add("drips");
  if (shown && !siblings.some((one) => shown[one])) made.classList.add("faint");
  made.title = several + `${title(i)} · ${type(i)} · ${plural(data.parameters[i], "parameter")} · ${WORDS[what]}`;
  made.dataset.at = i;
  made.style.left = `${left}%`;
  made.style.width = `${share}%`;
  made.style.top = `${level * 1.75}rem`;
  if (what === "mixed") made.style.setProperty("--part", `${Math.min(80, Math.max(15, 100 * learns[i] / data.parameters[i]))}%`);
  return made;
}

function draw() {
  const blocks = [];
  let deepest = 0;
  const put = (i, level, left, share) => {
    blocks.push(block(i, level, left, share));
    deepest = Math.max(deepest, level);
    if (level + 1 < LEVELS) putKids(i, level + 1, left, share);
  };
  const putKids = (i, level, left, share) => {
    const whole = weight(i);
    let thin = [];
    let thinShare = 0;
    const flush = (end) => {
      if (thin.length && thinShare >= THIN) {
        blocks.push(block(thin[0], level, end - thinShare, thinShare, thin));
        deepest = Math.max(deepest, level);
      }
      thin = [];
      thinShare = 0;
    };
    for (const kid of kids[i]) {
      const part = whole ? (share * weight(kid)) / whole : 0;
      if (part >= THIN) {
        flush(left);
        put(kid, level, left, part);
      } else {
        thin.push(kid);
        thinShare += part;
        if (thinShare >= WIDE) flush(left + part);
      }
      left += part;
    }
    flush(left);
  };
  put(focus, 0, 0, 100);
  const strip = byId("strip");
  strip.replaceChildren(...blocks);
  strip.style.height = `${(deepest + 1) * 1.75}rem`;
  strip.setAttribute("aria-label", `${title(focus)} and what is in it, a block for each module; the tree below says the same in words`);
  trail();
}

function trail() {
  const way = [];
  for (let at = focus; at >= 0; at = data.parent[at]) way.unshift(at);
  byId("trail").replaceChildren(...way.map((at) => {
    const text = make("bdi", "", own(at) || title(at));
    return at === focus ? make("b", "", text) : button("plain", text, () => zoom(at));
  }));
}

function zoom(i) {
  focus = kids[i].length ? i : Math.max(0, data.parent[i]);
  draw();
}

function widen(name) {
  width = name;
  press(all("[data-width]"), (one) => one.dataset.width === name);
  draw();
}
