// The page around a terminal: listens to what the frame tells, and to nobody else.

const frame = document.querySelector("iframe");
const jumpserver = new URL(frame.src).origin;

window.addEventListener("message", ({ origin, source, data }) => {
  if (origin !== jumpserver || source !== frame.contentWindow) return;
  const note = document.querySelector("#told");
  if (data.type === "ready") note.textContent = "The terminal is open.";
  if (data.type === "ended") note.textContent = `The terminal has ended: ${data.reason}.`;
});
