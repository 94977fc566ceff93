// Search in what a recording showed: its output without escape sequences, in any case, across events.

const SLICE_MS = 12; // of work, then the page may draw
const HITS_LIMIT = 1000;
const CONTEXT = 60; // characters of a line that are told on each side of a hit
const TAIL = 256; // characters of earlier output that a later backspace may take away
const LONGEST_CSI = 256; // characters; what is longer is text
const CONTROLS = /[\x00-\x1f\x7f-\x9f]/;

const RIGHT = /(?:\x1b\[|\x9b)[0-9]*C/g; // some programs move on instead of printing blanks
const ELSEWHERE = /(?:\x1b\[|\x9b)[0-9;]*[ABEFGHdf]|\r\n?/g; // what follows stands in another place
// ECMA-48, sections 5.3 to 5.6. In each alternative the repeated classes exclude each other: linear.
const CSI = "(?:\\x1b\\[|\\x9b)[0-?]*[ -/]*[@-~]";
const STRING_BEGIN = "\\x1b[\\]PX^_]";
const STRING_END = "\\x07|\\x18|\\x1a|\\x9c|\\x1b\\\\|(?=\\x1b)";
const STRING_TEXT = "[^\\x07\\x18\\x1a\\x1b\\x9c]*";
const SHORT = "\\x1b[ -/]*[0-OQ-WYZ\\\\`-~]";
const SEQUENCES = new RegExp(`${CSI}|${STRING_BEGIN}${STRING_TEXT}(?:${STRING_END})|${SHORT}`, "g");
const END_OF_STRING = new RegExp(STRING_END);
const OPEN_STRING = new RegExp(`${STRING_BEGIN}${STRING_TEXT}\\x1b?$`, "y");
const OPEN_SEQUENCE = new RegExp(`\\x1b(?:\\[[0-?]*)?[ -/]*$`, "y");
const OTHER_CONTROLS = /[\x00-\x07\x0b-\x1f\x7f-\x9f]/g; // all but backspace, tab and line feed

// Output in pieces becomes what can be read of it.
class PlainText {
  #open = ""; // the beginning of a sequence whose end has not come
  #inString = false; // in a title, a picture or the like, which may be long

  of(data) {
    let text = this.#open + data;
    this.#open = "";
    if (!this.#inString && !CONTROLS.test(text)) return text;
    if (this.#inString) text = this.#afterString(text);
    text = this.#withoutOpen(text);
    return text.replace(RIGHT, " ").replace(ELSEWHERE, "\n").replace(SEQUENCES, "").replace(OTHER_CONTROLS, "");
  }

  #afterString(text) {
    const end = END_OF_STRING.exec(text);
    if (end?.[0] === "" && end.index === text.length - 1) {
      this.#open = "\x1b";
      return "";
    }
    this.#inString = !end;
    return end ? text.slice(end.index + end[0].length) : "";
  }

  #withoutOpen(text) {
    const last = text.lastIndexOf("\x1b");
    const before = last > 0 ? text.lastIndexOf("\x1b", last - 1) : -1; // a string's own, where its end is torn
    for (const start of [before, last].filter((index) => index >= 0)) {
      OPEN_STRING.lastIndex = OPEN_SEQUENCE.lastIndex = start;
      if (OPEN_STRING.test(text)) {
        this.#inString = true;
        if (text.endsWith("\x1b")) this.#open = "\x1b";
        return text.slice(0, start);
      }
      if (text.length - start <= LONGEST_CSI && OPEN_SEQUENCE.test(text)) {
        this.#open = text.slice(start);
        return text.slice(0, start);
      }
    }
    return text;
  }
}

// Looks for a text in output that comes in pieces.
class Scan {
  #plain = new PlainText();
  #pattern;
  #length;
  #tail = "";

  constructor(text) {
    this.#pattern = new RegExp(text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"), "gi");
    this.#length = text.length;
  }

  // The line in which the text stands that this piece completes; null where it does not.
  found(data) {
    const [text, old] = erased(this.#tail, this.#plain.of(data));
    this.#tail = text.slice(-(TAIL + this.#length));
    this.#pattern.lastIndex = Math.max(0, old - this.#length + 1);
    const hit = this.#pattern.exec(text);
    return hit && lineAround(text, hit.index, hit.index + hit[0].length);
  }
}

// The texts joined, a backspace taking away the character before it, and how much of the first is still there.
function erased(before, text) {
  if (!text.includes("\b")) return [before + text, before.length];
  const characters = [...before];
  let old = characters.length;
  for (const character of text) {
    if (character !== "\b") characters.push(character);
    else if (characters.at(-1) !== "\n") characters.pop();
    old = Math.min(old, characters.length);
  }
  return [characters.join(""), characters.slice(0, old).join("").length];
}

function lineAround(text, start, end) {
  const from = Math.max(text.lastIndexOf("\n", start - 1) + 1, start - CONTEXT, 0);
  const newline = text.indexOf("\n", end);
  const to = Math.min(newline < 0 ? text.length : newline, end + CONTEXT);
  return text.slice(from, to).trim();
}

export class TextSearch {
  #events;
  #run = 0;

  // `events`: of the recording, in order: [milliseconds, code, data].
  constructor(events) {
    this.#events = events;
  }

  // When the text was there: {hits: [{seconds, line}], more: whether there may be others}, one hit an event. Works in
  // slices; `onprogress` is called between them with what part is done. Null where another search has begun since.
  async find(text, onprogress) {
    this.#run += 1;
    const run = this.#run;
    const scan = new Scan(text);
    const hits = [];
    let pause = performance.now() + SLICE_MS;
    for (const [index, [milliseconds, code, data]] of this.#events.entries()) {
      const line = code === "o" ? scan.found(data) : null;
      if (line !== null) hits.push({ seconds: milliseconds / 1000, line });
      if (hits.length === HITS_LIMIT) return { hits, more: index + 1 < this.#events.length };
      if (performance.now() < pause) continue;
      onprogress(index / this.#events.length);
      await new Promise((resolve) => setTimeout(resolve));
      if (run !== this.#run) return null;
      pause = performance.now() + SLICE_MS;
    }
    return { hits, more: false };
  }

  // Ends the search that runs.
  stop() {
    this.#run += 1;
  }
}
