// The findings above the map.
function siftFindings() {
  const asked = byId("search").value.trim().toLowerCase();
  const severities = new Set(all("[data-severity][aria-pressed=true]").map((one) => one.dataset.severity));
  const code = byId("code")?.value || "";
  const said = asked && new Set(data.findings.filter(([at, , where, message]) =>
    [data.name[at], data.texts[where], data.texts[message]].some((text) => text.toLowerCase().includes(asked))).map(([, group]) => group));
  let left = 0;
  const groups = all(".finding");
  groups.forEach((group, at) => {
    const fits = !asked || said.has(at) || group.querySelector(".rule").textContent.toLowerCase().includes(asked);
    group.hidden = !(fits && severities.has(group.dataset.severity) && (!code || group.dataset.code === code));
    left += !group.hidden;
  });
  byId("shown").textContent = left === groups.length ? "" : left ? `${number.format(left)} of ${plural(groups.length, "group")} shown` : "No finding fits.";
}

async function copy(from) {
  const code = from.parentElement.querySelector("pre");
  try {
    await navigator.clipboard.writeText(code.textContent);
    from.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(code);
    from.textContent = "Selected";
  }
  setTimeout(() => { from.textContent = "Copy"; }, 1600);
}
