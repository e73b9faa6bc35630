function press(buttons, pressed) {
  for (const one of buttons) one.setAttribute("aria-pressed", String(pressed(one)));
}

function choose(name, asked = byId("find").value) {
  filter = name;
  byId("find").value = asked;
  press(all("#filters button"), (one) => one.dataset.filter === name);
  const matches = sift();
  byId("matched").textContent = matches < 0 ? "" : `${number.format(matches)} of ${plural(count, "module")}`;
  plant(matches < 0 ? 24 : 200);
  draw();
}

function print() {
  const closed = all("details:not([open]):not(.rest)").filter((one) => !tree.contains(one));
  closed.forEach((one) => { one.open = true; });
  grow(250, (i) => hot[i] || many[i]);
  all("details", tree).forEach((one) => { if (!one.open && found[one.parentElement.dataset.at]) open(+one.parentElement.dataset.at); });
  addEventListener("afterprint", () => closed.forEach((one) => { one.open = false; }), { once: true });
}

function start() {
  all("[data-script]").forEach((one) => { one.hidden = false; });
  for (const [name, [words, fits]] of Object.entries(FILTERS)) {
    let fitting = 0;
    for (let i = 0; i < count; i++) fitting += fits(i) ? 1 : 0;
    if (!fitting) continue;
    const one = button("", make("i", `dot ${name}`), () => choose(name));
    one.append(words, " ", make("b", "", number.format(fitting)));
    one.dataset.filter = name;
    byId("filters").append(one);
  }
  let waiting = 0;
  byId("find").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => choose(filter), 120);
  });
  byId("close").addEventListener("click", () => plant(1));
  byId("open").addEventListener("click", () => grow(rows.size * 2 + 100));
  byId("strip").addEventListener("click", (event) => {
    const at = event.target.closest(".block")?.dataset.at;
    if (at === undefined) return;
    locate(+at);
    zoom(+at);
  });
  all("[data-width]").forEach((one) => one.addEventListener("click", () => widen(one.dataset.width)));
  tree.addEventListener("keydown", walk);
  byId("search")?.addEventListener("input", siftFindings);
  byId("code")?.addEventListener("change", siftFindings);
  all("[data-severity][aria-pressed]").forEach((one) => one.addEventListener("click", () => {
    one.setAttribute("aria-pressed", String(one.getAttribute("aria-pressed") !== "true"));
    siftFindings();
  }));
  document.addEventListener("click", (event) => {
    const copying = event.target.closest(".copy");
    if (copying) copy(copying);
    const link = event.target.closest("a[data-at]");
    if (!link) return;
    event.preventDefault();
    byId("map").scrollIntoView();
    locate(+link.dataset.at).querySelector("summary")?.focus({ preventScroll: true });
  });
  addEventListener("beforeprint", print);
  choose("all", "");
  performance.mark("frostline-ready");
}

start();
