// The player page: fetches one recording itself, so that whatever goes wrong can be said in words, then hands
// the events to asciinema-player. Tests find the player at document.querySelector("#player").player.

/* global AsciinemaPlayer */

import { Chapters } from "./chapters.js";
import { enteredToken, linkTo, takeLink } from "./link.js";
import { showMark } from "./mark.js";
import { Picture, TEXT_SIZE } from "./picture.js";
import { TextSearch } from "./search.js";
import { Timeline, clockText, countUpTo, momentText, parseMoment } from "./timeline.js";
import { LiveView, isLive } from "./live.js";
import { LOCALE, own, say, sentence } from "./words.js";

const PROGRESS_DELAY_MS = 400; // a short download shows no progress
const LARGEST = { cols: 1000, rows: 500 }; // more takes the player many seconds a frame, or kills it
const USUAL = { cols: 80, rows: 24 };
const CODES = "oir"; // output, input, resize; other events are not for the player
const JOINERS = /\u200d/g; // of emoji; the player gives each a cell of its own, the C libraries in pods none
const MARK_CODES = "md"; // marker, exit code of a command: what chapters are made of
const TICKS = 500; // at most, over the slider; of more chapters every second, third or so has one
const EXIT_CODE = /^-?\d{1,10}$/;
const CLOCK_MS = 200; // between two looks at the player's clock
const LATE_SECONDS = 0.0005; // a jump ends so long after the moment, so that no rounding leaves out what was printed then
const STEP_CHARACTERS = 1 << 20; // of output, that a jump draws at one go
const BACK_SECONDS = 1; // a chapter that plays for less is not what "previous" means
const TYPING_MS = 250; // without a key, then what was typed is searched for
const TOAST_MS = 4000;
const TERMINAL_FONT = 'ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", "Noto Sans Mono CJK SC", monospace';

const el = (id) => document.getElementById(id);

const state = {
  filename: "",
  token: "",
  t: "", // of the link
  recording: null, // what parseRecording returned
  timeline: null, // between the recording's clock and the player's
  size: 0, // of the file, in bytes
  player: null,
  playing: false,
  target: 0, // seconds in the recording, that the last jump went to
  moving: null, // where a new player goes on: {at, playing}; null once it does
  second: -1, // of the recording, that the clock shows
  picture: null, // its size
  seeking: false, // whether the slider is held
  chapters: null,
  search: null, // a TextSearch
  searched: "", // what it looked for last
  hits: [], // what it found
  more: false, // whether there may be more
  hit: -1, // the one that was jumped to
  typing: 0, // timer
  toasting: 0, // timer
  failed: false,
};

class Unplayable extends Error {
  // `text`: {text, lang}. `asks`: for a token.
  constructor(title, text, asks = false) {
    super(title);
    this.title = title;
    this.text = text;
    this.asks = asks;
  }
}

// ---- Fetch ----

async function fetchRecording() {
  const url = new URL("records/play", location.href);
  url.search = new URLSearchParams({ filename: state.filename }).toString();
  url.hash = "";
  const headers = state.token ? { Authorization: `Bearer ${state.token}` } : {};
  const response = await fetch(url, { headers, cache: "no-cache" }).catch(() => {
    throw new Unplayable(say("notReached"), own(say("notReachedWhy")));
  });
  if (!response.ok) throw await refusal(response);
  const outcome = response.headers.get("X-Recording");
  if (outcome && outcome !== "complete") showIncomplete(outcome);
  return readAll(response);
}

async function refusal(response) {
  const plain = (response.headers.get("Content-Type") || "").startsWith("text/plain");
  const words = plain ? await response.text().catch(() => "") : "";
  const { status } = response;
  if (status === 401 || status === 403) {
    if (!state.token) return new Unplayable(say("needsToken"), own(say("needsTokenWhy")), true);
    return new Unplayable(say("mayNotPlay"), whyNotAllowed(words.trim()), true);
  }
  if (status === 404) return new Unplayable(say("noRecording"), own(say("noRecordingWhy", { name: shortName() })));
  return new Unplayable(say("notSent"), words.trim() ? sentence(words) : own(say("answeredWith", { status })));
}

// What the server said, and what to do where it did not say so itself.
function whyNotAllowed(words) {
  const { text, lang } = words ? sentence(words) : own(say("mayHaveExpired"));
  const hint = /\bopen\b/i.test(words) || lang !== own("").lang ? "" : say("openRecordingAgain");
  return { text: `${text} ${hint}`.trim(), lang };
}

async function readAll(response) {
  const total = response.headers.get("Content-Encoding") ? 0 : Number(response.headers.get("Content-Length"));
  const reader = response.body.getReader();
  const chunks = [];
  let received = 0;
  for (;;) {
    const { done, value } = await reader.read().catch(() => {
      throw new Unplayable(say("brokeOff"), own(say("brokeOffWhy", { received: bytesText(received) })));
    });
    if (done) return new Blob(chunks, { type: "application/x-asciicast" });
    chunks.push(value);
    received += value.length;
    if (!el("words").hidden) showProgress(received, total);
  }
}

function showProgress(received, total) {
  if (state.failed) return; // the player can be broken before there is anything to play
  const sizes = { received: bytesText(received), total: bytesText(total) };
  const arrived = total ? say("arrivedOf", sizes) : sizes.received;
  showWords(say("loading"), own(received ? arrived : say("waiting")));
  el("progress").hidden = !total;
  if (total) Object.assign(el("progress"), { max: total, value: received });
}

// ---- Parse ----

// asciicast v2 (times since the start) and v3 (times since the event before). A last line cut short is dropped:
// the recording may still be growing, or its writer died.
function parseRecording(text) {
  const lines = text.split("\n");
  const header = parseHeader(lines[0]);
  const numbers = [...lines.keys()].filter((number) => lines[number][0] === "[");
  const events = [];
  const marks = [];
  let seconds = 0;
  for (const number of numbers) {
    const event = parseEvent(lines[number]);
    if (event) {
      seconds = Math.max(seconds, header.version === 3 ? seconds + event[0] : event[0]); // the player needs them in order
      if (CODES.includes(event[1])) events.push([seconds * 1000, event[1], event[2]]);
      if (MARK_CODES.includes(event[1])) marks.push([seconds, event[1], event[2]]);
    } else if (number === numbers[numbers.length - 1]) {
      showIncomplete("cut");
    } else {
      throw new Unplayable(say("damaged"), own(say("damagedWhy", { line: number + 1 })));
    }
  }
  if (!events.some((event) => event[1] === "o")) {
    throw new Unplayable(say("nothingPrinted"), own(say("nothingPrintedWhy")));
  }
  const size = playableSize(header.width ?? header.term?.cols, header.height ?? header.term?.rows);
  return { header, ...size, events: events.map(playableEvent), marks, rests: restTimes(events), seconds: events[events.length - 1][0] / 1000 };
}

// The times, in seconds, at which a long way through the recording is interrupted.
function restTimes(events) {
  let length = 0;
  const isRest = ([, code, data]) => {
    if (code === "o") length += data.length;
    if (length < STEP_CHARACTERS) return false;
    length = 0;
    return true;
  };
  return events.filter(isRest).map(([time]) => time / 1000);
}

function playableEvent([milliseconds, code, data]) {
  if (code === "o") return [milliseconds, code, data.replace(JOINERS, "")];
  if (code !== "r") return [milliseconds, code, data];
  const { cols, rows } = playableSize(...data.split("x").map(Number));
  return [milliseconds, code, `${cols}x${rows}`];
}

// The size that is shown for a recorded one. The player's own code dies of very large ones, without a word.
function playableSize(cols, rows) {
  if (![cols, rows].every((side) => Number.isInteger(side) && side > 0)) return USUAL;
  const shown = { cols: Math.min(cols, LARGEST.cols), rows: Math.min(rows, LARGEST.rows) };
  if (shown.cols < cols || shown.rows < rows) showSizeRemark(`${cols} \u00d7 ${rows}`, `${shown.cols} \u00d7 ${shown.rows}`);
  return shown;
}

function parseHeader(line) {
  let header;
  try {
    header = JSON.parse(line);
  } catch {
    header = null;
  }
  if (header?.version === 2 || header?.version === 3) return header;
  throw new Unplayable(say("noAsciicast"), own(say("noAsciicastWhy")));
}

function parseEvent(line) {
  try {
    const [time, code, data] = JSON.parse(line);
    const valid = Number.isFinite(time) && typeof code === "string" && code.length === 1 && typeof data === "string";
    return valid ? [time, code, data] : null;
  } catch {
    return null;
  }
}

// ---- Play ----

function createPlayer(autoPlay) {
  if (typeof AsciinemaPlayer === "undefined") {
    throw new Unplayable(say("noPlayer"), own(say("noPlayerWhy")));
  }
  const { cols, rows, events } = state.recording;
  state.player?.dispose();
  state.playing = autoPlay;
  const limit = idleLimit();
  state.timeline = new Timeline(eventTimes(events), limit);
  const source = { data: "", parser: () => ({ cols, rows, events }) };
  const player = AsciinemaPlayer.create(source, el("player"), {
    autoPlay,
    controls: false,
    adaptivePalette: isLight(), // else the 240 colours beside the 16 are those for a dark ground
    cursorMode: calm() ? "steady" : "blinking",
    fit: "none",
    idleTimeLimit: limit,
    preload: true,
    speed: Number(el("speed").value),
    terminalFontFamily: TERMINAL_FONT,
    terminalFontSize: TEXT_SIZE,
    theme: "jumpserver",
  });
  player.addEventListener("metadata", ({ duration }) => showMeta(duration));
  player.addEventListener("play", () => onPlaying(true));
  for (const name of ["pause", "ended"]) player.addEventListener(name, () => onPlaying(false));
  player.addEventListener("error", () => fail(new Error("the player gave up")));
  state.player = el("player").player = player;
  state.picture.watch();
  showTicks();
}

function onPlaying(playing) {
  state.playing = playing;
  el("player").classList.add("started"); // from here on, a new player shows no large button over the picture
  const [word, icon] = playing ? [say("pause"), "pause"] : [say("play"), "play"];
  el("play").ariaLabel = word;
  el("play").title = `${word} (${say("spaceKey")})`;
  el("play").querySelector("use").setAttribute("href", `icons.svg#${icon}`);
}

// The player takes its options at the start only: a new one goes on where the old one stood.
function onControls() {
  state.moving ??= { at: recordedNow(), playing: state.playing };
  const { at, playing } = state.moving;
  createPlayer(false);
  const { player } = state;
  const there = player.seek(state.timeline.shown(at));
  const moved = playing ? player.play() : there; // asked for at once: of a player that was replaced it would fail
  moved.then(() => {
    if (player === state.player) state.moving = null;
  });
}

// The time in the recording that is shown.
function recordedNow() {
  return state.moving?.at ?? state.timeline.recorded(state.player.getCurrentTime() ?? 0);
}

// Goes to a time in the recording, and plays on if it plays. The player draws all output on the way at one go, so a long
// way is gone in steps, between which the page lives; a later jump ends this one.
async function jump(seconds) {
  const at = Math.min(seconds + LATE_SECONDS, state.recording.seconds);
  const { player, timeline } = state;
  if (state.moving) state.moving.at = at;
  el("player").classList.add("started");
  state.target = at;
  const now = recordedNow();
  const begin = at < now ? 0 : now; // back means anew
  for (const rest of state.recording.rests.filter((time) => time > begin && time < at)) {
    await player.seek(timeline.shown(rest));
    await new Promise((resolve) => setTimeout(resolve));
    if (state.target !== at || state.player !== player) return;
  }
  await player.seek(timeline.shown(at));
}

// Goes to a time in the recording to look at it.
function showMomentAt(seconds) {
  if (state.moving) state.moving.playing = false;
  state.player.pause();
  jump(seconds);
}

function calm() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}

function isLight() {
  return document.documentElement.dataset.theme === "light";
}

function idleLimit() {
  return Number(el("idle").value) || 1e9; // 0 would cut every pause, and none at all the header's own limit in
}

function* eventTimes(events) {
  for (const [milliseconds] of events) yield milliseconds / 1000;
}

// ---- Words ----

function showWords(title, { text, lang }) {
  el("words-title").textContent = title;
  Object.assign(el("words-text"), { textContent: text, lang });
  el("progress").hidden = true;
  el("words").hidden = false;
}

function fail(error) {
  if (state.failed) return; // what comes after the first failure is its consequence
  state.failed = true;
  el("words").classList.add("failed");
  state.player?.dispose();
  state.search?.stop();
  for (const id of ["player", "find", "list", "help", "search", "transport", "chapters"]) el(id).hidden = true;
  if (error instanceof Unplayable) {
    showWords(error.title, error.text);
    el("token-form").hidden = !error.asks;
    return;
  }
  console.error(error);
  showWords(say("cannotPlay"), own(say("cannotPlayWhy")));
}

function showIncomplete(outcome) {
  if (!el("incomplete").hidden) return; // the server has said why
  el("incomplete-text").textContent = outcome === "running" ? say("incompleteRunning") : say("incompleteCut");
  el("incomplete").hidden = false;
}

function showSizeRemark(recorded, shown) {
  el("size-remark").textContent = say("sizeRemark", { recorded, shown });
  el("size-remark").hidden = false;
}

function showMomentRemark() {
  el("moment-remark").textContent = say("momentRemark");
  el("moment-remark").hidden = false;
}

function showTitle() {
  const title = state.recording.header.title || shortName();
  el("title").textContent = title;
  el("title").title = shortName();
  document.title = say("titleOfRecording", { title });
  showMark(placeOf(state.recording.header));
}

// The cluster and how it is marked, as the recording has it.
function placeOf(header) {
  const place = header.jumpserver;
  return typeof place === "object" && place !== null ? place : {};
}

// `duration`: what the player's clock counts to, in seconds; less than the recording's where pauses are cut.
function showMeta(duration) {
  const { header, seconds } = state.recording;
  const [shown, whole] = [clockText(duration), clockText(seconds)];
  const length = shown === whole ? shown : say("withPauses", { shown, whole });
  const name = header.title ? shortName() : ""; // else it is the title
  const { cluster } = placeOf(header);
  const place = typeof cluster === "string" ? say("cluster", { name: cluster }) : "";
  el("meta").textContent = [place, dateText(dateAt(0)), length, bytesText(state.size), name].filter(Boolean).join(" \u00b7 ");
}

// The date of a time in the recording; null where it does not say when it began.
function dateAt(seconds) {
  const { timestamp } = state.recording.header;
  const date = new Date(Number.isFinite(timestamp) ? (timestamp + Math.floor(seconds)) * 1000 : NaN);
  return Number.isNaN(date.getTime()) ? null : date;
}

function dateText(date) {
  return date?.toLocaleString(LOCALE, { dateStyle: "medium", timeStyle: "long" }) ?? "";
}

function toast(text) {
  clearTimeout(state.toasting);
  el("toast").textContent = text;
  el("toast").hidden = false;
  state.toasting = setTimeout(() => (el("toast").hidden = true), TOAST_MS);
}

function offerDownload(blob) {
  el("download").href = URL.createObjectURL(blob);
  el("download").download = shortName();
  el("download").hidden = false;
}

function shortName() {
  return state.filename.split("/").pop() || "recording.cast";
}

function bytesText(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  if (bytes < 1e6) return `${(bytes / 1000).toFixed(1)} kB`;
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

// ---- Moments ----

function showNow() {
  if (state.failed) return;
  const seconds = recordedNow();
  state.chapters.light(seconds);
  markFound();
  showPlace(seconds);
  if (Math.floor(seconds) === state.second) return;
  state.second = Math.floor(seconds);
  const date = dateAt(seconds);
  el("clock").hidden = !date;
  el("clock").textContent = dateText(date);
  el("clock").dateTime = date?.toISOString() ?? "";
  el("clock").title = date ? `${date.toISOString().slice(0, 19).replace("T", " ")} UTC` : "";
  el("elapsed").textContent = say("elapsedOf", { elapsed: clockText(seconds), whole: clockText(state.recording.seconds) });
  el("seek").setAttribute("aria-valuetext", el("elapsed").textContent);
}

// The slider has the player's clock, on which a pause that is cut takes no room.
function showPlace(seconds) {
  if (state.seeking) return;
  const { timeline, recording } = state;
  el("seek").max = timeline.shown(recording.seconds);
  el("seek").value = timeline.shown(seconds);
  showFilled();
}

function showFilled() {
  const { max, value } = el("seek");
  el("seek").style.setProperty("--done", max > 0 ? value / max : 0);
}

function showTicks() {
  const { marks, seconds } = state.recording;
  const whole = state.timeline.shown(seconds);
  const chapters = marks.filter(([, code]) => code === "m");
  const every = Math.ceil(chapters.length / TICKS);
  const ticks = chapters.filter((_, index) => index % every === 0).map(([time]) => {
    const tick = document.createElement("i");
    tick.style.left = `${(100 * state.timeline.shown(time)) / (whole || 1)}%`;
    return tick;
  });
  el("ticks").replaceChildren(...ticks);
}

function onSeeking() {
  state.seeking = true;
  showFilled();
}

function onSought() {
  state.seeking = false;
  jump(state.timeline.recorded(Number(el("seek").value)));
}

function togglePlay() {
  if (state.playing) state.player.pause();
  else state.player.play();
}

async function copyLink() {
  const link = linkTo(state.filename, momentText(recordedNow()));
  history.replaceState(null, "", link);
  try {
    await navigator.clipboard.writeText(link);
    toast(say("linkCopied"));
  } catch {
    toast(say("linkNotCopied")); // or plain http
  }
}

// Another link was opened in this tab.
function onLink() {
  const { filename, token, t } = takeLink();
  const moment = parseMoment(t);
  const isHere = filename === state.filename && token === state.token && state.player && !state.failed;
  if (isHere && !Number.isNaN(moment)) showMomentAt(moment);
  else location.reload();
}

function enterToken(event) {
  event.preventDefault();
  const token = enteredToken(el("token").value);
  location.hash = new URLSearchParams({ filename: state.filename, token, t: state.t }).toString();
}

// ---- Chapters ----

function listChapters() {
  state.chapters = new Chapters(el("chapters"));
  for (const [seconds, code, data] of state.recording.marks) {
    if (code === "m") state.chapters.add({ seconds, label: data });
    else if (EXIT_CODE.test(data)) state.chapters.done(Number(data));
  }
  state.chapters.onjump = (seconds) => {
    state.hit = -1;
    jump(seconds);
    if (isNarrow()) openChapters(false);
  };
  for (const id of ["list", "previous", "next"]) el(id).hidden = !state.chapters.size;
  openChapters(state.chapters.size > 0 && !isNarrow());
}

function openChapters(open) {
  el("chapters").hidden = !open;
  el("list").setAttribute("aria-expanded", open);
}

// As a sheet over the picture the list has a button of its own, and all that is beside it closes it, too.
function onSheetClick(event) {
  const isBeside = event.target === el("chapters") && isNarrow() && event.clientY < el("chapters").getBoundingClientRect().top;
  if (!isBeside && !event.target.closest("#chapters-close")) return;
  openChapters(false);
  el("list").focus();
}

// While it plays, going back from the first moments of a chapter means the one before it.
function stepChapter(by) {
  state.chapters.step(by, recordedNow() - (by < 0 && state.playing ? BACK_SECONDS : 0));
}

function isNarrow() {
  return matchMedia("(max-width: 640px)").matches; // as in style.css: there they lie over the picture
}

// ---- Search ----

function openSearch() {
  if (document.fullscreenElement) document.exitFullscreen();
  el("search").hidden = false;
  el("find").setAttribute("aria-expanded", "true");
  el("search-text").select();
}

function closeSearch() {
  el("search").hidden = true;
  el("find").setAttribute("aria-expanded", "false");
  picture().focus({ preventScroll: true });
}

function onTyping() {
  clearTimeout(state.typing);
  state.search.stop();
  state.typing = setTimeout(search, TYPING_MS);
}

// Finds what is in the box; true where it is still what is wanted when that is done.
async function search() {
  clearTimeout(state.typing);
  const text = el("search-text").value;
  Object.assign(state, { hits: [], hit: -1, searched: "" });
  state.search.stop();
  showHit(text.trim() ? say("searching") : "");
  if (!text.trim()) return false;
  const progress = (part) => showHit(say("searchingPart", { part: Math.floor(part * 100) }));
  const found = await state.search.find(text, progress);
  if (!found) return false;
  Object.assign(state, { hits: found.hits, searched: text, more: found.more });
  const count = found.hits.length;
  showHit(found.more ? say("foundOrMore", { count }) : count ? say("found", { count }) : say("notFound"));
  return true;
}

// Jumps to the next (1) or previous (-1) match: of the one that is shown, else of the moment that is.
async function stepHit(by) {
  if (el("search-text").value !== state.searched && !(await search())) return;
  const { hits, hit } = state;
  if (!hits.length) return;
  const before = countUpTo(hits, recordedNow() - 2 * LATE_SECONDS, ({ seconds }) => seconds);
  const next = hit >= 0 ? hit + by : by > 0 ? before : before - 1;
  state.hit = (next + hits.length) % hits.length;
  showMomentAt(hits[state.hit].seconds);
  const place = { index: state.hit + 1, count: hits.length };
  showHit(state.more ? say("hitOfMore", place) : say("matchOf", place));
}

function showHit(count) {
  el("search-count").textContent = count;
  el("search-line").textContent = state.hits[state.hit]?.line ?? "";
  el("search-line").hidden = state.hit < 0;
}

// What was searched for, marked in the picture while the search is open. Older browsers do without.
function markFound() {
  if (!CSS.highlights) return;
  const text = el("search").hidden ? "" : state.searched.toLowerCase();
  const lines = text ? picture().querySelectorAll(".ap-line") : [];
  CSS.highlights.set("found", new Highlight(...[...lines].flatMap((line) => rangesOf(text, line))));
}

function rangesOf(text, line) {
  const shown = line.textContent.toLowerCase();
  const ranges = [];
  for (let at = shown.indexOf(text); at >= 0; at = shown.indexOf(text, at + text.length)) {
    ranges.push(rangeIn(line, at, at + text.length));
  }
  return ranges;
}

// Of these characters of the element, which are spread over text nodes.
function rangeIn(element, start, end) {
  const nodes = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  const range = new Range();
  for (let passed = 0; passed < end && nodes.nextNode(); passed += nodes.currentNode.length) {
    const { currentNode: node } = nodes;
    if (start >= passed && start < passed + node.length) range.setStart(node, start - passed);
    range.setEnd(node, Math.min(end - passed, node.length));
  }
  return range;
}

function onSearchKey(event) {
  if (event.isComposing) return;
  if (event.key === "Enter") stepHit(event.shiftKey ? -1 : 1);
  else if (event.key === "Escape") closeSearch();
  else return;
  event.preventDefault();
}

// ---- Keys ----

const KEYS = {
  "/": openSearch,
  "?": () => el("keys").showModal(),
  f: () => state.picture.toggleFullscreen(),
  "[": () => stepChapter(-1),
  "]": () => stepChapter(1),
  Escape: () => (el("search").hidden ? isNarrow() && openChapters(false) : closeSearch()),
};

// Before the player, which has a list of its keys of its own; and for it, where nothing else has the focus.
function onKey(event) {
  if (state.failed || el("keys").open || event.altKey) return;
  const { key, target } = event;
  const isTyping = target.closest?.("input:not([type=range]), select, textarea");
  if (event.ctrlKey || event.metaKey) {
    if (key.toLowerCase() !== "f" || event.shiftKey || target === el("search-text")) return; // again: the browser's own
    openSearch();
  } else if (!isTyping && key in KEYS) {
    KEYS[key]();
  } else if (!isForPicture(event) || picture().dispatchEvent(new KeyboardEvent(event.type, event))) {
    return;
  }
  event.preventDefault();
  event.stopPropagation();
}

// Keys of the player that nothing else takes: where nothing has the focus, or a button or the slider below the picture.
function isForPicture({ key, target }) {
  if (target === document.body) return true;
  return Boolean(target.closest?.("#transport button, #seek")) && !(target.tagName === "BUTTON" && [" ", "Enter"].includes(key));
}

function picture() {
  return el("player").querySelector(".ap-wrapper");
}

// ---- Start ----

async function start() {
  Object.assign(state, takeLink());
  el("title").textContent = shortName();
  if (!state.filename) throw new Unplayable(say("noName"), own(say("noNameWhy")));
  const slow = setTimeout(showProgress, PROGRESS_DELAY_MS, 0, 0);
  const blob = await fetchRecording().finally(() => clearTimeout(slow));
  offerDownload(blob);
  if (state.failed) return;
  state.size = blob.size;
  state.recording = parseRecording(await blob.text());
  state.search = new TextSearch(state.recording.events);
  el("words").hidden = true;
  for (const id of ["find", "help", "transport"]) el(id).hidden = false;
  state.picture = new Picture();
  listChapters();
  const moment = parseMoment(state.t);
  createPlayer(!calm() && !state.t);
  if (!Number.isNaN(moment)) jump(moment);
  else if (state.t) showMomentRemark();
  showTitle();
  listen();
  showNow();
  picture().focus({ preventScroll: true });
}

function listen() {
  for (const id of ["speed", "idle"]) el(id).addEventListener("change", onControls);
  window.addEventListener("themechange", onControls);
  el("seek").addEventListener("input", onSeeking);
  el("seek").addEventListener("change", onSought);
  const clicks = {
    find: () => (el("search").hidden ? openSearch() : closeSearch()),
    list: () => openChapters(el("chapters").hidden),
    help: KEYS["?"],
    play: togglePlay,
    previous: KEYS["["],
    next: KEYS["]"],
    "copy-link": copyLink,
    "search-next": () => stepHit(1),
    "search-previous": () => stepHit(-1),
    "search-close": closeSearch,
  };
  for (const [id, action] of Object.entries(clicks)) el(id).addEventListener("click", action);
  el("search-text").addEventListener("input", onTyping);
  el("search-text").addEventListener("keydown", onSearchKey);
  window.addEventListener("keydown", onKey, true);
  setInterval(showNow, CLOCK_MS);
}

// What runs now has chapters, too; there is no way back to them until it has ended.
async function watch() {
  const chapters = new Chapters(el("chapters"));
  const live = new LiveView(takeLink(), { showWords, isLight, font: TERMINAL_FONT });
  live.onchapter = (chapter) => {
    chapters.add(chapter);
    chapters.light(chapter.seconds);
    if (!el("list").hidden) return;
    el("list").hidden = false;
    openChapters(!isNarrow());
  };
  live.ondone = (exitCode) => chapters.done(exitCode);
  el("list").addEventListener("click", () => openChapters(el("chapters").hidden));
  window.addEventListener("keydown", (event) => onWatchKey(event, live), true);
  return live.start();
}

function onWatchKey(event, live) {
  const keys = { f: () => live.toggleFullscreen(), Escape: () => isNarrow() && openChapters(false) };
  if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest?.("input") || !(event.key in keys)) return;
  keys[event.key]();
  event.preventDefault();
  event.stopPropagation();
}

el("stuck").remove();
el("token-form").addEventListener("submit", enterToken);
el("chapters").addEventListener("click", onSheetClick);
window.addEventListener("hashchange", onLink);
// What breaks inside the player comes out here: its WebAssembly dies in timers and event handlers.
window.addEventListener("error", (event) => event.error && fail(event.error));
window.addEventListener("unhandledrejection", (event) => fail(event.reason));
(isLive() ? watch() : start()).catch(fail);
