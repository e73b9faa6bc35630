// Open the way to a module and put it in view, without moving the page.
function locate(i) {
  if (shown && !shown[i]) choose("all", "");
  const way = [];
  for (let at = i; at > 0; at = data.parent[at]) way.unshift(at);
  open(0);
  for (const at of way) {
    const above = data.parent[at];
    open(above);
    if (!rows.has(at) || !rows.get(at).li.isConnected) stretch(above, kidsOf(above).indexOf(at));
  }
  open(i);
  all(".located", tree).forEach((li) => li.classList.remove("located"));
  const { li } = rows.get(i);
  li.classList.add("located");
  tree.scrollTop += li.getBoundingClientRect().top - tree.getBoundingClientRect().top - 60;
  return li;
}

// Arrows walk the open rows; right and left open and close.
function walk(event) {
  const at = event.target.closest("summary");
  if (!at || event.altKey || event.ctrlKey || event.metaKey) return;
  const details = at.parentElement;
  const lines = all("summary", tree).filter((line) => line.checkVisibility());
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  let to = null;
  if (step) to = lines[lines.indexOf(at) + step];
  else if (event.key === "Home") to = lines[0];
  else if (event.key === "End") to = lines.at(-1);
  else if (event.key === "ArrowRight" && !details.open) details.open = true;
  else if (event.key === "ArrowRight") to = lines[lines.indexOf(at) + 1];
  else if (event.key === "ArrowLeft" && details.open) details.open = false;
  else if (event.key === "ArrowLeft") to = details.parentElement.parentElement.closest("details")?.firstElementChild;
  else return;
  event.preventDefault();
  to?.focus();
}
