// The size of the picture: its text is as large as fits the page, or has its full size and scrolls. The player is given
// the size of its text as the property --font-size of #player, so that another size needs no other player.

const FULL_PX = 15; // as in the terminal
const READABLE_PX = 10; // smaller text is shown at its full size instead, until something else is chosen
const LARGEST_PX = 24;
const EXACT = 0.001; // part of the size that is not worth another look

const el = (id) => document.getElementById(id);

// What the player's option terminalFontSize has to be.
export const TEXT_SIZE = "var(--font-size)";

// Keeps its size from the time of the first player on.
export class Picture {
  #fitted = null; // whether it is; null until there is something to fit
  #room = new ResizeObserver(() => this.#fit());
  #shown = new ResizeObserver(() => this.#fit());

  constructor() {
    el("fitted").addEventListener("click", () => this.#choose(true));
    el("full-size").addEventListener("click", () => this.#choose(false));
    el("fullscreen").addEventListener("click", () => this.toggleFullscreen());
    el("fullscreen").hidden = !document.fullscreenEnabled;
    document.addEventListener("fullscreenchange", () => this.#showFullscreen());
    el("player").style.setProperty("--font-size", `${FULL_PX}px`);
    this.#room.observe(el("player"));
  }

  // A new player has begun to show something.
  watch() {
    this.#shown.disconnect();
    this.#shown.observe(this.#term);
  }

  toggleFullscreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else el("picture").requestFullscreen();
  }

  get #term() {
    return el("player").querySelector(".ap-term");
  }

  #choose(fitted) {
    this.#fitted = fitted;
    this.#fit();
  }

  #fit() {
    const wanted = this.#fittingPx();
    if (!wanted) return;
    this.#fitted ??= wanted >= READABLE_PX;
    el("player").classList.toggle("full", !this.#fitted);
    for (const [id, pressed] of [["fitted", this.#fitted], ["full-size", !this.#fitted]]) el(id).setAttribute("aria-pressed", pressed);
    const px = this.#fitted ? Math.min(wanted, LARGEST_PX) : FULL_PX;
    if (Math.abs(px / this.#px - 1) > EXACT) el("player").style.setProperty("--font-size", `${px.toFixed(3)}px`);
  }

  get #px() {
    return parseFloat(el("player").style.getPropertyValue("--font-size"));
  }

  // The text size at which all of it can be seen; where the page grows with it, in its width. 0: nothing is shown yet.
  #fittingPx() {
    const box = this.#term?.getBoundingClientRect();
    if (!box?.width) return 0;
    const { clientWidth, clientHeight } = el("player");
    const grows = getComputedStyle(el("player")).position === "static";
    return this.#px * (1 - EXACT) * Math.min(clientWidth / box.width, grows ? Infinity : clientHeight / box.height);
  }

  #showFullscreen() {
    const is = Boolean(document.fullscreenElement);
    el("fullscreen").querySelector("use").setAttribute("href", `icons.svg#fullscreen${is ? "-leave" : ""}`);
    el("fullscreen").setAttribute("aria-pressed", is);
  }
}
