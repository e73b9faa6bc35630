// What is shown of the tree: null for all; else for each module 0 hidden, 1 on the way to a
// match or below one, 2 a match. `toward` marks those with a match below.
let shown = null;
let toward = null;
const FILTERS = {
  all: ["All", () => true],
  now: ["Will change", (i) => here(i) === 2],
  later: ["After train()", (i) => here(i) === 1],
  findings: ["With findings", (i) => found[i] !== null],
  frozen: ["Frozen", (i) => data.state[i] === 0],
  held: ["Held", (i) => held.has(i)],
  trainable: ["Trainable", (i) => data.state[i] === 1],
  mixed: ["Partly frozen", (i) => data.state[i] === 2],
};
let filter = "all";

function sift() {
  const asked = byId("find").value.trim().toLowerCase();
  const [, fits] = FILTERS[filter];
  if (filter === "all" && !asked) {
    shown = toward = null;
    return -1;
  }
  shown = new Uint8Array(count);
  toward = new Uint8Array(count);
  let matches = 0;
  for (let i = 0; i < count; i++) {
    if (fits(i) && (!asked || says(i, asked))) {
      shown[i] = 2;
      matches++;
    } else if (i && shown[data.parent[i]]) {
      shown[i] = 1;
    }
  }
  for (let i = count - 1; i > 0; i--) {
    if (shown[i] === 2 || toward[i]) toward[data.parent[i]] = 1;
  }
  for (let i = 0; i < count; i++) if (toward[i] && !shown[i]) shown[i] = 1;
  return matches;
}

// A match reaches into a module's own name: all that is below "layer4" has that in its full name.
function says(i, asked) {
  const at = data.name[i].toLowerCase().lastIndexOf(asked);
  return (at >= 0 && at + asked.length > data.own[i]) || type(i).toLowerCase().includes(asked);
}

const kidsOf = (i) => (shown ? kids[i].filter((kid) => shown[kid]) : kids[i]);
