// The player page: fetches one recording itself, so that whatever goes wrong can be said in words, then hands
// the events to asciinema-player. Tests find the player at document.querySelector("#player").player.

/* global AsciinemaPlayer */

const PROGRESS_DELAY_MS = 400; // a short download shows no progress
const TERMINAL_FONT = 'ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", "Noto Sans Mono CJK SC", monospace';

const el = (id) => document.getElementById(id);

const state = {
  filename: "",
  token: "",
  recording: null, // what parseRecording returned
  player: null,
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
  return readAll(response);
}

async function refusal(response) {
  const plain = (response.headers.get("Content-Type") || "").startsWith("text/plain");
  const said = plain ? sentence(await response.text().catch(() => "")) : "";
  const { status } = response;
  if (status === 401 || status === 403) {
    const text = `${said || "The link may have expired."} Open the recording again from where you found it.`;
    return new Unplayable("You may not play this recording", text);
  }
  if (status === 404) {
    return new Unplayable("There is no such recording", `${shortName()} was not found. It may have been removed, or the link is incomplete.`);
  }
  return new Unplayable("The server could not send the recording", said || `It answered with status ${status}.`);
}

async function readAll(response) {
  const total = response.headers.get("Content-Encoding") ? 0 : Number(response.headers.get("Content-Length"));
  const reader = response.body.getReader();
  const startedAt = performance.now();
  const chunks = [];
  let received = 0;
  for (;;) {
    const { done, value } = await reader.read().catch(() => {
      throw new Unplayable("The download broke off", `${bytesText(received)} had arrived. Load this page again to retry.`);
    });
    if (done) return new Blob(chunks, { type: "application/x-asciicast" });
    chunks.push(value);
    received += value.length;
    if (performance.now() - startedAt > PROGRESS_DELAY_MS) showProgress(received, total);
  }
}

function showProgress(received, total) {
  showWords("Loading the recording", total ? `${bytesText(received)} of ${bytesText(total)}` : bytesText(received));
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
      seconds = header.version === 3 ? seconds + event[0] : event[0];
      events.push([seconds * 1000, event[1], event[2]]);
    } else if (number !== numbers[numbers.length - 1]) {
      throw new Unplayable("The recording is damaged", `Line ${number + 1} cannot be read. The file itself can be downloaded.`);
    }
  }
  if (!events.some((event) => event[1] === "o")) {
    throw new Unplayable("Nothing was printed", "The session was recorded, but it ended before anything appeared in its terminal.");
  }
  const cols = header.width ?? header.term?.cols;
  const rows = header.height ?? header.term?.rows;
  return { header, cols, rows, events, seconds };
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
    const event = JSON.parse(line);
    return Number.isFinite(event[0]) && typeof event[1] === "string" ? event : null;
  } catch {
    return null;
  }
}

// ---- Play ----

function play(startAt) {
  const { cols, rows, events } = state.recording;
  state.player?.dispose();
  const source = { data: "", parser: () => ({ cols, rows, events }) };
  state.player = AsciinemaPlayer.create(source, el("player"), {
    autoPlay: true,
    controls: true,
    fit: "both",
    idleTimeLimit: idleLimit(),
    speed: Number(el("speed").value),
    startAt,
    terminalFontFamily: TERMINAL_FONT,
    theme: "jumpserver",
  });
  state.player.addEventListener("error", () => fail(new Error("the player gave up")));
  el("player").player = state.player;
  el("player").querySelector(".ap-wrapper")?.focus();
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

function onControls() {
  play(recordedTime(state.player.getCurrentTime(), state.idleLimit));
  state.idleLimit = idleLimit();
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
  if (!(error instanceof Unplayable)) console.error(error);
  el("player").hidden = true;
  if (error instanceof Unplayable) showWords(error.title, error.text);
  else showWords("The recording cannot be played", "It is too large for this browser or not in a form it can show. The file itself can be downloaded.");
}

function showMeta(size) {
  const { header, seconds } = state.recording;
  const date = header.timestamp ? new Date(header.timestamp * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" }) : "";
  el("title").textContent = header.title || shortName();
  el("title").title = shortName();
  el("meta").textContent = [date, durationText(seconds), bytesText(size)].filter(Boolean).join(" \u00b7 ");
  document.title = `${header.title || shortName()} \u2013 Recording`;
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

function durationText(seconds) {
  const whole = Math.round(seconds);
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const text = parts.map((part, i) => (part ? `${part} ${["h", "min", "s"][i]}` : "")).filter(Boolean).join(" ");
  return text || "under 1 s";
}

// ---- Start ----

function takeLink() {
  const query = new URLSearchParams(location.search);
  const fragment = new URLSearchParams(location.hash.slice(1));
  for (const name of ["filename", "token"]) state[name] = fragment.get(name) || query.get(name) || "";
  // A token in the query would be sent, and logged, with every reload; a fragment stays in the browser.
  const link = new URLSearchParams({ filename: state.filename, token: state.token });
  if (location.search) history.replaceState(null, "", `${location.pathname}#${link}`);
}

async function start() {
  takeLink();
  el("title").textContent = shortName();
  if (!state.filename) throw new Unplayable("No recording was named", "The link is incomplete: it needs filename=… and a token.");
  const blob = await fetchRecording();
  offerDownload(blob);
  state.recording = parseRecording(await blob.text());
  showMeta(blob.size);
  el("words").hidden = true;
  el("controls").hidden = false;
  for (const id of ["speed", "idle"]) el(id).addEventListener("change", onControls);
  state.idleLimit = idleLimit();
  play(0);
}

window.addEventListener("hashchange", () => location.reload());
start().catch(fail);
