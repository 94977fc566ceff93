// The player page: fetches one recording itself, so that whatever goes wrong can be said in words, then hands
// the events to asciinema-player. Tests find the player at document.querySelector("#player").player.

/* global AsciinemaPlayer */

import { LiveView, isLive } from "./live.js";

const PROGRESS_DELAY_MS = 400; // a short download shows no progress
const LARGEST = { cols: 1000, rows: 500 }; // more takes the player many seconds a frame, or kills it
const USUAL = { cols: 80, rows: 24 };
const CODES = "oirm"; // output, input, resize, marker; other events are not for the eye
const READABLE_PX = 6; // the narrowest that a character may be fitted to
const TERMINAL_FONT = 'ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", "Noto Sans Mono CJK SC", monospace';

const el = (id) => document.getElementById(id);

const state = {
  filename: "",
  token: "",
  recording: null, // what parseRecording returned
  size: 0, // of the file, in bytes
  player: null,
  playing: false,
  moving: null, // where a new player goes on: {at, playing}; null once it does
  idleLimit: 0, // seconds, as the player was given it
  failed: false,
};

class Unplayable extends Error {
  constructor(title, text) {
    super(title);
    this.title = title;
    this.text = text;
  }
}

// ---- Fetch ----

async function fetchRecording() {
  const url = new URL("records/play", location.href);
  url.search = new URLSearchParams({ filename: state.filename }).toString();
  url.hash = "";
  const headers = state.token ? { Authorization: `Bearer ${state.token}` } : {};
  const response = await fetch(url, { headers, cache: "no-cache" }).catch(() => {
    throw new Unplayable("The server could not be reached", "Check the network connection, then load this page again.");
  });
  if (!response.ok) throw await refusal(response);
  const outcome = response.headers.get("X-Recording");
  if (outcome && outcome !== "complete") showIncomplete(outcome);
  return readAll(response);
}

async function refusal(response) {
  const plain = (response.headers.get("Content-Type") || "").startsWith("text/plain");
  const said = plain ? sentence(await response.text().catch(() => "")) : "";
  const { status } = response;
  if (status === 401 || status === 403) {
    const hint = /\bopen\b/i.test(said) ? "" : "Open the recording again from where you found it.";
    return new Unplayable("You may not play this recording", `${said || "The link may have expired."} ${hint}`.trim());
  }
  if (status === 404) {
    return new Unplayable("There is no such recording", `${shortName()} was not found. It may have been removed, or the link is incomplete.`);
  }
  return new Unplayable("The server could not send the recording", said || `It answered with status ${status}.`);
}

async function readAll(response) {
  const total = response.headers.get("Content-Encoding") ? 0 : Number(response.headers.get("Content-Length"));
  const reader = response.body.getReader();
  const chunks = [];
  let received = 0;
  for (;;) {
    const { done, value } = await reader.read().catch(() => {
      throw new Unplayable("The download broke off", `${bytesText(received)} had arrived. Load this page again to retry.`);
    });
    if (done) return new Blob(chunks, { type: "application/x-asciicast" });
    chunks.push(value);
    received += value.length;
    if (!el("words").hidden) showProgress(received, total);
  }
}

function showProgress(received, total) {
  if (state.failed) return; // the player can be broken before there is anything to play
  const arrived = total ? `${bytesText(received)} of ${bytesText(total)}` : bytesText(received);
  showWords("Loading the recording", received ? arrived : "Waiting for the server.");
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
  let seconds = 0;
  for (const number of numbers) {
    const event = parseEvent(lines[number]);
    if (event) {
      seconds = Math.max(seconds, header.version === 3 ? seconds + event[0] : event[0]); // the player needs them in order
      if (CODES.includes(event[1])) events.push([seconds * 1000, event[1], event[2]]);
    } else if (number === numbers[numbers.length - 1]) {
      showIncomplete("cut");
    } else {
      throw new Unplayable("The recording is damaged", `Line ${number + 1} cannot be read. The file itself can be downloaded.`);
    }
  }
  if (!events.some((event) => event[1] === "o")) {
    throw new Unplayable("Nothing was printed", "The session was recorded, but it ended before anything appeared in its terminal.");
  }
  const size = playableSize(header.width ?? header.term?.cols, header.height ?? header.term?.rows);
  return { header, ...size, events: events.map(playableEvent), seconds: events[events.length - 1][0] / 1000 };
}

function playableEvent([milliseconds, code, data]) {
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
  throw new Unplayable("This is not a recording", "The file does not begin like an asciicast. It can be downloaded as it is.");
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
    const text = "Its script did not arrive, or this browser cannot run it. Load the page again, or download the file.";
    throw new Unplayable("The player could not be loaded", text);
  }
  const { cols, rows, events } = state.recording;
  state.player?.dispose();
  state.playing = autoPlay;
  state.idleLimit = idleLimit();
  el("player").classList.toggle("full", el("fit").value === "none");
  const source = { data: "", parser: () => ({ cols, rows, events }) };
  const player = AsciinemaPlayer.create(source, el("player"), {
    autoPlay,
    controls: true,
    cursorMode: calm() ? "steady" : "blinking",
    fit: el("fit").value,
    idleTimeLimit: state.idleLimit,
    preload: true,
    speed: Number(el("speed").value),
    terminalFontFamily: TERMINAL_FONT,
    theme: "jumpserver",
  });
  player.addEventListener("metadata", ({ duration }) => showMeta(duration));
  player.addEventListener("play", () => onPlaying(true));
  for (const name of ["pause", "ended"]) player.addEventListener(name, () => onPlaying(false));
  player.addEventListener("error", () => fail(new Error("the player gave up")));
  state.player = el("player").player = player;
}

function onPlaying(playing) {
  state.playing = playing;
  el("player").classList.add("started"); // from here on, a new player shows no large button over the picture
}

// The player takes its options at the start only: a new one goes on where the old one stood.
function onControls() {
  state.moving ??= { at: recordedTime(state.player.getCurrentTime(), state.idleLimit), playing: state.playing };
  const { at, playing } = state.moving;
  createPlayer(false);
  const { player } = state;
  const there = player.seek(shownTime(at, state.idleLimit));
  const moved = playing ? player.play() : there; // asked for at once: of a player that was replaced it would fail
  moved.then(() => {
    if (player === state.player) state.moving = null;
  });
}

function calm() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}

// Small text on a narrow screen is shown at its full size and scrolls instead.
function chooseFit() {
  if (el("player").clientWidth / state.recording.cols < READABLE_PX) el("fit").value = "none";
}

function idleLimit() {
  return Number(el("idle").value) || 1e9; // 0 would cut every pause, and none at all the header's own limit in
}

// The player's clock leaves out what the pause limit cuts. Gives the time in the recording that it stands at.
function recordedTime(shown, limit) {
  let previous = 0;
  let cut = 0;
  for (const [milliseconds] of state.recording.events) {
    const time = milliseconds / 1000;
    const extra = Math.max(0, time - previous - limit);
    if (time - cut - extra > shown) break;
    cut += extra;
    previous = time;
  }
  return shown + cut;
}

// The other way round: what the player's clock says at a time in the recording.
function shownTime(recorded, limit) {
  let previous = 0;
  let shown = 0;
  for (const [milliseconds] of state.recording.events) {
    const time = Math.min(milliseconds / 1000, recorded);
    shown += Math.min(time - previous, limit);
    previous = time;
  }
  return shown;
}

// ---- Words ----

function sentence(text) {
  const said = text.trim();
  return said && said[0].toUpperCase() + said.slice(1) + (/[.!?\u3002]$/.test(said) ? "" : ".");
}

function showWords(title, text) {
  el("words-title").textContent = title;
  el("words-text").textContent = text;
  el("progress").hidden = true;
  el("words").hidden = false;
}

function fail(error) {
  if (state.failed) return; // what comes after the first failure is its consequence
  state.failed = true;
  state.player?.dispose();
  el("player").hidden = true;
  el("controls").hidden = true;
  if (error instanceof Unplayable) {
    showWords(error.title, error.text);
    return;
  }
  console.error(error);
  showWords("The recording cannot be played", "The player failed: the recording is too large for this browser or not in a form it can show. The file itself can be downloaded.");
}

function showIncomplete(outcome) {
  const running = "The session is still running: load this page again to see more of it.";
  const cut = "The recording was cut off: the end of the session is missing.";
  el("incomplete-text").textContent = outcome === "running" ? running : cut;
  el("incomplete").hidden = false;
}

function showSizeRemark(recorded, shown) {
  el("size-remark").textContent = `The terminal had a size of ${recorded}. It is shown as ${shown}, so some lines may stand elsewhere.`;
  el("size-remark").hidden = false;
}

function showTitle() {
  const title = state.recording.header.title || shortName();
  el("title").textContent = title;
  el("title").title = shortName();
  document.title = `${title} \u2013 Recording`;
}

// `duration`: what the player's clock counts to, in seconds; less than the recording's where pauses are cut.
function showMeta(duration) {
  const { header, seconds } = state.recording;
  const begun = new Date(Number.isFinite(header.timestamp) ? header.timestamp * 1000 : NaN);
  const date = Number.isNaN(begun.getTime()) ? "" : begun.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "long" });
  const [shown, whole] = [clockText(duration), clockText(seconds)];
  const length = shown === whole ? shown : `${shown} (${whole} with all pauses)`;
  el("meta").textContent = [date, length, bytesText(state.size)].filter(Boolean).join(" \u00b7 ");
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

// As the player's clock has it.
function clockText(seconds) {
  const whole = Math.floor(seconds);
  const parts = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60, whole % 60];
  while (parts.length > 2 && !parts[0]) parts.shift();
  return parts.map((part) => String(part).padStart(2, "0")).join(":");
}

// ---- Start ----

function takeLink() {
  const query = new URLSearchParams(location.search);
  const fragment = new URLSearchParams(location.hash.slice(1));
  for (const name of ["filename", "token"]) state[name] = fragment.get(name) || query.get(name) || "";
  // A token in the query would be sent, and logged, with every reload; a fragment stays in the browser.
  const link = new URLSearchParams({ filename: state.filename, token: state.token, ...(isLive() && { live: "1" }) });
  if (location.search) history.replaceState(null, "", `${location.pathname}#${link}`);
}

async function start() {
  takeLink();
  el("title").textContent = shortName();
  if (!state.filename) throw new Unplayable("No recording was named", "The link is incomplete: it needs filename=\u2026 and a token.");
  const slow = setTimeout(showProgress, PROGRESS_DELAY_MS, 0, 0);
  const blob = await fetchRecording().finally(() => clearTimeout(slow));
  offerDownload(blob);
  if (state.failed) return;
  state.size = blob.size;
  state.recording = parseRecording(await blob.text());
  el("words").hidden = true;
  el("controls").hidden = false;
  for (const id of ["speed", "idle", "fit"]) el(id).addEventListener("change", onControls);
  chooseFit();
  createPlayer(!calm());
  showTitle();
  el("player").querySelector(".ap-wrapper").focus({ preventScroll: true });
}

async function watch() {
  takeLink();
  await new LiveView(state, { showWords, sentence, font: TERMINAL_FONT }).start();
}

el("stuck").remove();
window.addEventListener("hashchange", () => location.reload());
// What breaks inside the player comes out here: its WebAssembly dies in timers and event handlers.
window.addEventListener("error", (event) => event.error && fail(event.error));
window.addEventListener("unhandledrejection", (event) => fail(event.reason));
(isLive() ? watch() : start()).catch(fail);
