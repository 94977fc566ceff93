// The word and the colour that tell a cluster from others, where its operator or a token has said them.

const COLOUR = /^#[0-9a-f]{6}$/;
const LIMIT = 64; // characters

// Values may come from a recording, and so from anybody.
export function showMark({ cluster, label, colour }) {
  const mark = document.getElementById("mark");
  const shown = COLOUR.test(colour) ? colour : "";
  const word = textOf(label) || (shown && textOf(cluster));
  Object.assign(mark, { textContent: word, hidden: !word });
  document.body.style.setProperty("--mark", shown || null);
}

function textOf(value) {
  return typeof value === "string" ? value.slice(0, LIMIT) : "";
}
