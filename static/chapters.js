// The chapters of a recording, listed beside its picture: commands with their exit codes, and the server's own words.
// Only the rows in sight are in the page, so that ten thousand cost what ten do.

import { clockText, countUpTo } from "./timeline.js";
import { say } from "./words.js";

const LIMIT = 20_000; // twice what a session can write; more are left out
const ROW_PX = 36; // as in style.css
const SPARE_ROWS = 6; // above and below those in sight
const FILTERED_FROM = 8; // chapters; fewer can be overlooked without a filter
const COMMAND = "$ "; // what the label of a command begins with
const BROWSING_MS = 4000; // so long the list stays where it was scrolled to
const NEAR = 0.001; // seconds that the player's clock may be off

const secondsOf = (chapter) => chapter.seconds;

export class Chapters {
  onjump = () => {}; // called with the seconds of the chapter that was chosen

  #all = []; // in the order of their times
  #shown = this.#all; // those that the filter lets through
  #running = null; // the command whose exit code has not come
  #lit = null;
  #active = 0; // the place in #shown of the keyboard's row
  #failures = 0;
  #failedOnly = false;
  #browsed = -Infinity; // when it was last scrolled by hand
  #frame = 0; // the drawing that is asked for
  #count;
  #filter;
  #failed;
  #tools;
  #list;
  #rows;

  // Fills this element, which has an id.
  constructor(element) {
    this.#count = make("p", "chapters-count");
    this.#count.setAttribute("role", "status");
    this.#filter = Object.assign(make("input"), { type: "search", placeholder: say("filter"), maxLength: 200, spellcheck: false });
    this.#filter.setAttribute("aria-label", say("filterChapters"));
    this.#failed = Object.assign(make("button"), { type: "button", textContent: say("failed"), title: say("failedOnly") });
    this.#list = make("div", "chapters-list");
    this.#rows = make("div", "chapters-rows");
    this.#list.tabIndex = 0;
    this.#list.id = `${element.id}-list`;
    for (const [name, value] of [["role", "listbox"], ["aria-label", say("chapters")]]) this.#list.setAttribute(name, value);
    this.#rows.setAttribute("role", "presentation");
    this.#tools = make("div", "chapters-tools");
    this.#tools.append(this.#filter, this.#failed);
    this.#list.append(this.#rows);
    element.append(this.#count, this.#tools, this.#list);
    this.#listen();
    this.#ask();
  }

  get size() {
    return this.#all.length;
  }

  // `chapter`: {seconds, label}, not earlier than the one before.
  add({ seconds, label }) {
    const isCommand = label.startsWith(COMMAND);
    const chapter = { seconds, label: isCommand ? label.slice(COMMAND.length) : label, isCommand, exitCode: null };
    if (isCommand) this.#running = this.#all.length < LIMIT ? chapter : null;
    if (this.#all.length >= LIMIT) return;
    this.#all.push(chapter);
    if (this.#shown !== this.#all && this.#lets(chapter)) this.#shown.push(chapter);
    this.#ask();
  }

  // The last command has ended. What does not belong to one, such as that of an empty line, is passed over.
  done(exitCode) {
    if (!this.#running) return;
    this.#running.exitCode = exitCode;
    this.#running = null;
    if (exitCode !== 0) this.#failures += 1;
    if (this.#failedOnly) this.#choose();
    this.#ask();
  }

  // Shows which chapter this time of the recording belongs to.
  light(seconds) {
    const lit = this.#all[countUpTo(this.#all, seconds + NEAR, secondsOf) - 1] ?? null;
    if (lit === this.#lit) return;
    this.#lit = lit;
    const place = this.#place(lit);
    if (place >= 0 && performance.now() - this.#browsed > BROWSING_MS) {
      this.#active = place;
      this.#reveal(place);
    }
    this.#ask();
  }

  // Jumps to the next (1) or previous (-1) of the chapters that are listed, seen from this time of the recording.
  step(by, seconds) {
    const place = by > 0 ? countUpTo(this.#shown, seconds + NEAR, secondsOf) : countUpTo(this.#shown, seconds - NEAR, secondsOf) - 1;
    if (place < this.#shown.length) this.onjump(place < 0 ? 0 : this.#shown[place].seconds);
  }

  #listen() {
    this.#filter.addEventListener("input", () => this.#choose());
    this.#failed.addEventListener("click", () => {
      this.#failedOnly = !this.#failedOnly;
      this.#choose();
    });
    this.#list.addEventListener("scroll", () => this.#ask());
    for (const name of ["wheel", "touchmove"]) {
      this.#list.addEventListener(name, () => (this.#browsed = performance.now()), { passive: true });
    }
    this.#list.addEventListener("click", (event) => this.#jump(this.#placeOf(event)));
    this.#list.addEventListener("keydown", (event) => this.#onKey(event));
    new ResizeObserver(() => this.#onSize()).observe(this.#list);
  }

  // Also when the list comes into sight.
  #onSize() {
    this.#reveal(Math.max(0, this.#place(this.#lit)));
    this.#ask();
  }

  // ---- Which ----

  #lets(chapter) {
    if (this.#failedOnly && !hasFailed(chapter)) return false;
    return chapter.label.toLowerCase().includes(this.#filter.value.trim().toLowerCase());
  }

  #choose() {
    const isFiltered = this.#failedOnly || this.#filter.value.trim() !== "";
    this.#shown = isFiltered ? this.#all.filter((chapter) => this.#lets(chapter)) : this.#all;
    this.#active = Math.max(0, this.#place(this.#lit));
    this.#reveal(this.#active);
    this.#ask();
  }

  // The row of a chapter; -1 where it is not listed.
  #place(chapter) {
    if (!chapter) return -1;
    const last = countUpTo(this.#shown, chapter.seconds, secondsOf) - 1;
    return this.#shown.lastIndexOf(chapter, last);
  }

  // ---- Keys and clicks ----

  #jump(place) {
    if (place < 0 || place >= this.#shown.length) return;
    this.#active = place;
    this.#browsed = -Infinity;
    this.#ask();
    this.onjump(this.#shown[place].seconds);
  }

  // By the place of the click: between its two halves the row may have been drawn again.
  #placeOf(event) {
    const row = event.target.closest("[role=option]");
    return row ? Number(row.dataset.place) : Math.floor((event.clientY - this.#rows.getBoundingClientRect().top) / ROW_PX);
  }

  #onKey(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const page = Math.max(1, Math.floor(this.#list.clientHeight / ROW_PX) - 1);
    const last = this.#shown.length - 1;
    const moves = { ArrowUp: -1, ArrowDown: 1, PageUp: -page, PageDown: page, Home: -last, End: last };
    if (event.key === "Enter" || event.key === " ") this.#jump(this.#active);
    else if (event.key in moves) this.#activate(Math.min(Math.max(this.#active + moves[event.key], 0), last));
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  #activate(place) {
    this.#active = Math.max(0, place);
    this.#browsed = performance.now();
    this.#reveal(this.#active);
    this.#ask();
  }

  #reveal(place) {
    const [top, height] = [place * ROW_PX, this.#list.clientHeight];
    const isAbove = top < this.#list.scrollTop;
    const isBelow = top + ROW_PX > this.#list.scrollTop + height;
    if (!isAbove && !isBelow) return;
    this.#stretch();
    this.#list.scrollTop = top - (height - ROW_PX) / 2;
  }

  // ---- Drawing ----

  #ask() {
    if (!this.#frame) this.#frame = requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    this.#frame = 0;
    const { scrollTop, clientHeight } = this.#list;
    const first = Math.max(0, Math.floor(scrollTop / ROW_PX) - SPARE_ROWS);
    const last = Math.min(this.#shown.length, Math.ceil((scrollTop + clientHeight) / ROW_PX) + SPARE_ROWS);
    this.#stretch();
    this.#rows.replaceChildren(...this.#shown.slice(first, last).map((chapter, index) => this.#row(chapter, first + index)));
    const active = this.#active >= first && this.#active < last;
    if (active) this.#list.setAttribute("aria-activedescendant", this.#rowId(this.#active));
    else this.#list.removeAttribute("aria-activedescendant");
    this.#failed.setAttribute("aria-pressed", this.#failedOnly);
    this.#failed.hidden = !this.#failures && !this.#failedOnly;
    this.#filter.hidden = this.#all.length < FILTERED_FROM;
    this.#tools.hidden = this.#failed.hidden && this.#filter.hidden;
    const words = this.#countText();
    if (this.#count.textContent !== words) this.#count.textContent = words;
  }

  #stretch() {
    this.#rows.style.height = `${this.#shown.length * ROW_PX}px`;
  }

  #countText() {
    const [count, shown, failed] = [this.#all.length, this.#shown.length, this.#failures];
    if (!count) return say("noChapters");
    const all = count === 1 ? say("oneChapter") : say("someChapters", { count });
    if (this.#shown !== this.#all) return shown ? say("someOfAll", { count: shown, all }) : say("noneOfAll", { all });
    return failed ? say("failedOfAll", { all, failed }) : all;
  }

  #rowId(place) {
    return `${this.#list.id}-${place}`;
  }

  #row(chapter, place) {
    const row = make("div", chapter.isCommand ? "chapter" : "chapter words");
    row.id = this.#rowId(place);
    row.dataset.place = place;
    row.title = chapter.label;
    row.style.top = `${place * ROW_PX}px`;
    row.classList.toggle("active", place === this.#active);
    row.classList.toggle("failed", hasFailed(chapter));
    const said = { role: "option", "aria-selected": chapter === this.#lit, "aria-posinset": place + 1, "aria-setsize": this.#shown.length };
    for (const [name, value] of Object.entries(said)) row.setAttribute(name, value);
    const time = Object.assign(make("span", "time"), { textContent: clockText(chapter.seconds) });
    const label = Object.assign(make("span", "label"), { textContent: chapter.label });
    const exit = Object.assign(make("span", "exit"), { textContent: exitText(chapter) });
    row.append(time, " ", label, " ", exit);
    return row;
  }
}

function hasFailed({ exitCode }) {
  return exitCode !== null && exitCode !== 0;
}

function exitText(chapter) {
  if (!chapter.isCommand || chapter.exitCode === null) return "";
  return (hasFailed(chapter) ? "\u2715 " : "") + say("exit", { code: chapter.exitCode });
}

function make(name, className = "") {
  return Object.assign(document.createElement(name), { className });
}
