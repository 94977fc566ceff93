// The terminal page: a connection to /ssh, shown by xterm.js. It knows nothing of pods beyond what the server says.
// Tests and user scripts find the xterm.js instance at document.querySelector("#terminal").terminal.

import { Terminal } from "./node_modules/@xterm/xterm/lib/xterm.mjs";
import { ClipboardAddon } from "./node_modules/@xterm/addon-clipboard/lib/addon-clipboard.mjs";
import { FitAddon } from "./node_modules/@xterm/addon-fit/lib/addon-fit.mjs";
import { SearchAddon } from "./node_modules/@xterm/addon-search/lib/addon-search.mjs";
import { Unicode11Addon } from "./node_modules/@xterm/addon-unicode11/lib/addon-unicode11.mjs";
import { WebLinksAddon } from "./node_modules/@xterm/addon-web-links/lib/addon-web-links.mjs";
import { WebglAddon } from "./node_modules/@xterm/addon-webgl/lib/addon-webgl.mjs";
import { CLOSE_USER, Connection, webSocketUrl } from "./connection.js";
import { whyNotOpened } from "./failure.js";
import { showMark } from "./mark.js";
import { repeatWhileHeld, touchTerminal } from "./touch.js";
import { countAsPods } from "./widths.js";
import { own, said, say, sentence } from "./words.js";

const CLOSE_DENIED = 4403;
const CLOSE_GONE = 4410;
const INPUT_CHUNK_CHARS = 4096; // at most 12 KiB of UTF-8, so that a message with its JSON stays below 16 KiB
const SOCKET_BUFFER_BYTES = 64 * 1024; // input waits here in the page while the socket holds more than this
const INPUT_RETRY_MS = 20;
const RESIZE_DELAY_MS = 100;
const TOAST_MS = 2500;
const NOTICE_MS = 15_000;
const CLOSING_MS = 300; // after which a tab that the browser keeps open has to be closed by hand
const FONT_SIZE_KEY = "jumpserver.fontSize";
const COPY_KEY = "jumpserver.copyOnSelect";
const SCREEN_READER_KEY = "jumpserver.screenReader";
const FONT_SIZE = { smallest: 8, usual: 14, largest: 28 };
// Leaves the alternate screen, mouse and paste modes of a shell that is gone, but keeps what it printed. The cursor
// is saved first because leaving the alternate screen restores it, even when the main screen is the one shown.
const SOFT_RESET = "\x1b7\x1b[?1049l\x1b[!p\x1b[?1000;1002;1003;1004;1006;2004l\x1b[?25h\x1b[0m\r\n";
const TITLE_CHARACTERS = 100; // of what a program calls itself
const UNPRINTABLE = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu;
const BELL_MS = 200;
const ARROWS = { ArrowUp: "A", ArrowDown: "B", ArrowRight: "C", ArrowLeft: "D" };

const SOFTWARE_RENDERER = /swiftshader|llvmpipe|softpipe|software|basic render/i;
const COLOURS = ["black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"];

const TOUCH = window.matchMedia("(pointer: coarse)").matches;
const REDUCED_MOTION = window.matchMedia("(prefers-reduced-motion: reduce)");
const FRAMED = window.self !== window.top;
const PLATFORM_URL = document.querySelector('meta[name="platform-url"]').content; // the server fills both in
const EMBEDDERS = document.querySelector('meta[name="embedders"]').content.split(" ").filter(Boolean);

const el = (id) => document.getElementById(id);

const state = {
  token: "",
  offeredToken: "", // of a link that was opened here while a shell runs
  reusable: true, // whether the token opens another terminal, as far as is known
  decoder: null, // of the output: a character may be split between messages
  phase: "idle", // idle, connecting, choosing, connected, reconnecting, ended, refused, lost, taken
  user: "",
  place: {}, // where the shell is: {pod, label} and more
  programTitle: "",
  rang: false, // while nobody looked
  partial: false, // what comes next may begin in the middle of a line
  sentSize: "",
  outbox: [], // input not handed to the socket yet
  outboxTimer: 0,
  ctrlHeld: false,
  resizeTimer: 0,
  toastTimer: 0,
};

const term = new Terminal({
  allowProposedApi: true, // search decorations and Unicode versions need it
  cursorBlink: true,
  fontFamily: 'ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", "Noto Sans Mono CJK SC", monospace',
  fontSize: storedFontSize(),
  lineHeight: 1.1, // at 1, where there is no WebGL, the row below cuts the underscores of some fonts off
  macOptionIsMeta: true,
  minimumContrastRatio: 4.5, // programs may print black on black
  scrollback: 10000,
  theme: theme(),
});
const fit = new FitAddon();
const search = new SearchAddon();

// ---- Connection ----

const connection = new Connection({
  size: () => ({ cols: term.cols, rows: term.rows }),
  session: onSession,
  choose: onChoose,
  output: onOutput,
  skipped: onSkipped,
  replayed: onReplayed,
  notice: (text) => toast(said(text).text, NOTICE_MS),
  silent: (silent) => setPhase("connected", silent ? say("noAnswer") : connectedAs(), silent),
  lost: onLost,
  over: onOver,
});

function connect() {
  if (["connected", "reconnecting"].includes(state.phase)) connection.leave();
  if (state.phase !== "idle") term.write(SOFT_RESET);
  state.programTitle = "";
  fit.fit();
  Object.assign(state, { reusable: true, outbox: [], decoder: new TextDecoder(), sentSize: sizeText(), partial: false });
  connection.open(webSocketUrl(sshPath(state.token)));
  setPhase("connecting", say("connecting"));
  term.focus();
}

function takeBack() {
  connection.comeBack();
  term.focus();
}

function sshPath(token) {
  return `ssh?${new URLSearchParams({ ssh_token: token, cols: term.cols, rows: term.rows })}`;
}

function connectedAs() {
  return state.user ? say("connectedAs", { user: state.user }) : say("connected");
}

function showPlace(session) {
  state.place = session;
  const target = [session.pod, session.container].filter(Boolean).join(" / ");
  el("target").textContent = el("target").title = target || say("terminal");
  el("namespace").textContent = session.namespace ? say("namespace", { name: session.namespace }) : "";
  el("cluster").textContent = session.cluster ? say("cluster", { name: session.cluster }) : "";
  showMark(session);
  el("place").hidden = !session.namespace && !session.cluster;
  showTitle();
}

// The tab's: what rang, where it is, above all whether that is production, and what the program calls itself.
function showTitle() {
  const { pod, label } = state.place;
  const what = state.programTitle ? `${state.programTitle} \u2013 ${pod}` : say("titleOfPod", { pod: pod || say("pod") });
  document.title = `${state.rang ? "\u{1f514} " : ""}${label ? `${label}: ` : ""}${what}`;
}

function onTitle(title) {
  state.programTitle = title.slice(0, TITLE_CHARACTERS).replace(UNPRINTABLE, "").trim();
  showTitle();
}

function onBell() {
  const stage = el("stage");
  if (!REDUCED_MOTION.matches && !stage.getAnimations().length) stage.animate({ opacity: [0.5, 1] }, BELL_MS);
  if (document.hidden) setRang(true);
}

function setRang(rang) {
  if (state.rang === rang) return;
  state.rang = rang;
  showTitle();
}

// The pod has several containers, and nothing else says which is meant.
function onChoose({ containers, seconds, ...place }) {
  showPlace(place);
  el("container-text").textContent = say("chooseText", { pod: place.pod, seconds });
  el("containers").replaceChildren(...containers.map(containerButton));
  setPhase("choosing", say("chooseContainer"));
  el("containers").firstChild.focus();
}

function containerButton(name) {
  const button = document.createElement("button");
  button.textContent = name;
  button.addEventListener("click", () => {
    connection.send({ type: "container", name });
    setPhase("connecting", say("connecting"));
    term.focus();
  });
  return button;
}

function onContainerKey(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const buttons = [...el("containers").children];
  buttons[(buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length].focus();
}

function onSession(session, lost) {
  if (!lost) tellEmbedder({ type: "ready" });
  showPlace(session);
  document.body.classList.remove("fresh"); // there is output to look back at from now on
  state.reusable = session.reusable === true;
  state.user = session.user;
  setPhase("connected", connectedAs());
  sendSize();
  flushInput();
}

// What is not UTF-8 is shown as the recording has it: xterm.js's own decoder would leave it out.
function onOutput(bytes, drawn) {
  const text = state.decoder.decode(bytes, { stream: true });
  term.write(state.partial ? text.slice(text.indexOf("\n") + 1) : text, drawn);
  state.partial = false;
}

function onSkipped(bytes, drawn) {
  state.decoder = new TextDecoder();
  const size = bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
  term.write(`\x18${SOFT_RESET}\x1b[7m${say("skipped", { size })}\x1b[0m\r\n`, drawn);
}

// After a reload: a program with a screen of its own draws all of it again when the size changes.
function onReplayed() {
  if (term.buffer.active.type !== "alternate") return;
  connection.send({ type: "resize", rows: term.rows - 1, cols: term.cols });
  connection.send({ type: "resize", rows: term.rows, cols: term.cols });
}

// The seconds are drawn by the style sheet: screen readers would read each of them out.
function onLost(seconds) {
  if (state.phase !== "reconnecting") setPhase("reconnecting", say("reconnecting"));
  el("status").dataset.left = say("secondsLeft", { seconds });
}

async function onOver({ event, end, upgraded, opened, taken }) {
  const reason = end?.reason || event.reason;
  const again = end ? end.reusable === true : state.reusable;
  if (!taken) tellEmbedder({ type: "ended", reason: reason || unsaid(event.code), exit_code: end?.exit_code ?? null });
  term.write(state.decoder.decode()); // half a character at the very end
  const hint = again || event.code === CLOSE_DENIED ? "" : say("openAgain"); // a denial says itself what to do
  if (taken) {
    finish("taken", own(say("takenWhy")), "", true);
  } else if (opened && event.code === CLOSE_GONE) {
    finish("ended", own(say("endedAway")), hint, again);
  } else if (opened && !end && event.code === CLOSE_USER) {
    finish("ended", own(say("endedByYou")), hint, again);
  } else if (end && opened) {
    const code = end.exit_code;
    const exit = Number.isInteger(code) && !reason?.includes(code) ? say("exitCode", { code }) : "";
    const told = reasonTold(reason);
    finish("ended", { ...told, text: `${told.text} ${exit}`.trim() }, hint, again);
  } else if (!opened && (end || event.code >= 4000)) {
    finish("refused", reasonTold(reason), hint, again);
  } else if (upgraded || opened) {
    const words = navigator.onLine ? say("unreachable") : say("offline");
    finish("lost", reason ? sentence(reason) : own(words), hint, again);
  } else {
    const masked = new URL(sshPath("x".repeat(encodeURIComponent(state.token).length)), location.href).href;
    const failure = await whyNotOpened(masked);
    if (state.phase === "connecting") finish("refused", own(failure.text), "", failure.again);
  }
}

// What the server did not say, in its words.
function unsaid(code) {
  return code === CLOSE_USER ? "the user has ended the session" : "the connection was lost";
}

// The page around this one, if it is of those that may frame it: browsers deliver to no page of another origin.
function tellEmbedder(message) {
  if (!FRAMED) return;
  for (const origin of EMBEDDERS) window.parent.postMessage(message, origin === "'self'" ? location.origin : origin);
}

// Offers what can help: a new try where one can work, else the way back to where new links are.
function finish(phase, { text, lang }, hint, again) {
  const title = { ended: say("ended"), refused: say("refused"), lost: say("lost"), taken: say("taken") }[phase];
  setPhase(phase, title);
  el("notice-title").textContent = title;
  Object.assign(el("notice-text"), { textContent: text, lang });
  el("notice-hint").textContent = hint;
  el("reconnect").textContent = { refused: say("tryAgain"), taken: say("continueHere") }[phase] ?? say("reconnect");
  el("reconnect").hidden = !again;
  el("close").hidden = again || FRAMED || PLATFORM_URL !== "";
  el("back").classList.toggle("primary", !again);
  el("notice").focus(); // not the button: keys still being typed must not open a shell
}

function reasonTold(reason) {
  return reason?.trim() ? sentence(reason) : own(say("noReason"));
}

function closePage() {
  window.close();
  setTimeout(() => toast(say("tabKept")), CLOSING_MS);
}

function setPhase(phase, words, silent = false) {
  state.phase = phase;
  document.body.dataset.phase = silent ? "silent" : phase;
  el("status").textContent = words;
  el("token-form").hidden = phase !== "idle";
  el("container-card").hidden = phase !== "choosing";
  el("notice").hidden = !["ended", "refused", "lost", "taken"].includes(phase);
  term.options.disableStdin = phase !== "connected";
  term.options.cursorBlink = phase === "connected";
  delete el("status").dataset.left;
  el("end").hidden = phase !== "connected";
  const warn = ["connected", "reconnecting"].includes(phase) && !FRAMED;
  window.onbeforeunload = warn ? askBeforeLeaving : null;
}

function askBeforeLeaving(event) {
  event.preventDefault();
  return true; // what older browsers look at
}

// ---- Up: size and input ----

function sizeText() {
  return `${term.cols}x${term.rows}`;
}

function sendSize() {
  if (state.phase !== "connected" || state.sentSize === sizeText()) return;
  state.sentSize = sizeText();
  connection.send({ type: "resize", rows: term.rows, cols: term.cols });
}

function scheduleFit() {
  clearTimeout(state.resizeTimer);
  state.resizeTimer = setTimeout(() => fit.fit(), RESIZE_DELAY_MS);
}

function sendInput(text) {
  if (state.phase !== "connected" || connection.replays) return;
  for (let start = 0; start < text.length; ) {
    const end = chunkEnd(text, start);
    state.outbox.push(text.slice(start, end));
    start = end;
  }
  flushInput();
}

function chunkEnd(text, start) {
  const end = Math.min(start + INPUT_CHUNK_CHARS, text.length);
  const splitsPair = end < text.length && /[\ud800-\udbff]/.test(text[end - 1]);
  return splitsPair ? end - 1 : end;
}

function flushInput() {
  clearTimeout(state.outboxTimer);
  while (state.phase === "connected" && state.outbox.length && connection.bufferedAmount < SOCKET_BUFFER_BYTES) {
    connection.send({ type: "input", input: state.outbox.shift() });
  }
  if (state.outbox.length) state.outboxTimer = setTimeout(flushInput, INPUT_RETRY_MS);
}

function onData(data) {
  const code = data.toUpperCase().charCodeAt(0);
  if (state.ctrlHeld && data.length === 1) {
    holdCtrl(false);
    sendInput(code >= 0x40 && code <= 0x5f ? String.fromCharCode(code & 0x1f) : code === 0x20 ? "\0" : data);
  } else {
    sendInput(data);
  }
}

function holdCtrl(held) {
  state.ctrlHeld = held;
  el("ctrl").setAttribute("aria-pressed", String(held));
}

function pressKey(key) {
  const arrow = ARROWS[key];
  if (key === "Escape") term.input("\x1b");
  else if (key === "Tab") term.input("\t");
  else if (state.ctrlHeld) term.input(`\x1b[1;5${arrow}`);
  else term.input((term.modes.applicationCursorKeysMode ? "\x1bO" : "\x1b[") + arrow);
  holdCtrl(false);
}

// ---- Clipboard ----

function paste(text) {
  // A paste must not be able to end its own brackets and so run what follows.
  term.paste(text.replace(/\x1b\[20[01]~/g, ""));
}

async function pasteFromClipboard() {
  try {
    paste(await navigator.clipboard.readText());
    term.focus();
  } catch {
    el("paste-text").value = "";
    el("paste-dialog").showModal();
  }
}

function sendPasteDialog() {
  el("paste-dialog").close();
  paste(el("paste-text").value);
  term.focus();
}

async function copySelection() {
  const text = term.getSelection();
  const copied = text !== "" && (await copyText(text));
  const how = TOUCH ? say("pressLong") : say("selectFirst");
  toast(copied ? say("copied") : text ? say("copyForbidden") : how);
  if (!TOUCH) term.focus(); // there it would open the keyboard
  else if (copied) term.clearSelection();
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyByCommand(text); // plain http and some iframes have no clipboard API
  }
}

function copyByCommand(text) {
  const fill = (event) => {
    event.clipboardData.setData("text/plain", text);
    event.preventDefault();
    event.stopPropagation();
  };
  document.addEventListener("copy", fill, { capture: true, once: true });
  const copied = document.execCommand("copy");
  document.removeEventListener("copy", fill, { capture: true });
  return copied;
}

const osc52 = {
  readText: () => "", // a program in the pod may fill the clipboard, never read it
  writeText: (_selection, text) => {
    copyText(text).then((copied) => copied && toast(say("programCopied")));
  },
};

// ---- Search, font size, words ----

function openSearch() {
  el("search").hidden = false;
  el("find").setAttribute("aria-expanded", "true");
  if (term.hasSelection()) el("search-text").value = term.getSelection().split("\n")[0];
  el("search-text").select();
  findNewest();
}

function closeSearch() {
  el("search").hidden = true;
  el("find").setAttribute("aria-expanded", "false");
  search.clearDecorations();
  term.focus();
}

// Without a selection to begin at, the search begins at the end.
function findNewest() {
  term.clearSelection();
  find(true);
}

function find(older) {
  const text = el("search-text").value;
  if (!text) {
    search.clearDecorations();
    el("search-count").textContent = "";
  } else if (older) search.findPrevious(text, { decorations: matchColours() });
  else search.findNext(text, { decorations: matchColours() });
}

function showCount({ resultIndex, resultCount }) {
  const place = resultIndex < 0 ? `${resultCount}` : say("matchOf", { index: resultIndex + 1, count: resultCount });
  const count = resultCount === 0 ? say("noMatches") : place;
  el("search-count").textContent = el("search-text").value ? count : "";
}

// The palettes are in style.css, for the player too.
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--term-${name}`).trim();
}

function theme() {
  const [foreground, background] = [colour("color-foreground"), colour("color-background")];
  const colours = { foreground, background, cursor: colour("color-4"), cursorAccent: background };
  COLOURS.forEach((name, i) => {
    colours[name] = colour(`color-${i}`);
    colours[`bright${name[0].toUpperCase()}${name.slice(1)}`] = colour(`color-${i + 8}`);
  });
  return { ...colours, selectionBackground: colour("selection"), selectionInactiveBackground: colour("selection-inactive") };
}

function matchColours() {
  const [match, active, edge] = ["match", "match-active", "match-edge"].map(colour);
  return {
    matchBackground: match, matchOverviewRuler: edge,
    activeMatchBackground: active, activeMatchBorder: edge, activeMatchColorOverviewRuler: edge,
  };
}

function storedFontSize() {
  return clampFontSize(Number(stored("localStorage", FONT_SIZE_KEY)) || FONT_SIZE.usual);
}

function clampFontSize(size) {
  return Math.min(FONT_SIZE.largest, Math.max(FONT_SIZE.smallest, size));
}

function changeFontSize(step) {
  term.options.fontSize = clampFontSize(term.options.fontSize + step);
  store("localStorage", FONT_SIZE_KEY, String(term.options.fontSize));
  fit.fit();
}

function setCopyOnSelect(on) {
  el("copy-on-select").checked = on;
  store("localStorage", COPY_KEY, String(on));
}

// With the keyboard locked all keys are the shell's: Ctrl+W closes no tab, and Escape leaves only when it is held.
async function toggleFullScreen() {
  if (document.fullscreenElement) {
    document.exitFullscreen();
    return;
  }
  try {
    await document.documentElement.requestFullscreen({ navigationUI: "hide" });
  } catch {
    toast(say("fullScreenForbidden"));
    return;
  }
  const locked = await lockKeyboard();
  toast(locked ? say("fullScreenLocked") : say("fullScreenOpen"), NOTICE_MS / 3);
  term.focus();
}

// Not every browser can, and none in a frame.
async function lockKeyboard() {
  try {
    await navigator.keyboard.lock();
    return true;
  } catch {
    return false;
  }
}

function onFullScreen() {
  const full = document.fullscreenElement !== null;
  const button = el("full-screen");
  button.querySelector("use").setAttribute("href", `icons.svg#${full ? "fullscreen-leave" : "fullscreen"}`);
  button.title = button.ariaLabel = full ? say("leaveFullScreen") : say("fullScreen");
}

function setScreenReader(on) {
  term.options.screenReaderMode = on;
  store("localStorage", SCREEN_READER_KEY, String(on));
  el("screen-reader").setAttribute("aria-pressed", String(on));
}

// An iframe may have no storage; nothing is kept then.
function stored(kind, key) {
  try {
    return window[kind].getItem(key);
  } catch {
    return null;
  }
}

function store(kind, key, value) {
  try {
    window[kind].setItem(key, value);
  } catch {
    // Not kept, then.
  }
}

function toast(text, milliseconds = TOAST_MS) {
  clearTimeout(state.toastTimer);
  el("toast").textContent = text;
  el("toast").hidden = false;
  state.toastTimer = setTimeout(() => (el("toast").hidden = true), milliseconds);
}

// ---- Start ----

function openTerminal() {
  for (const addon of [fit, search, new ClipboardAddon(undefined, osc52)]) term.loadAddon(addon);
  term.loadAddon(new WebLinksAddon((_event, uri) => window.open(uri, "_blank", "noopener,noreferrer")));
  countAsPods(term, new Unicode11Addon());
  term.open(el("terminal"));
  el("terminal").terminal = term;
  drawByGpu();
  term.onData(onData);
  term.onBinary(sendInput);
  term.onResize(sendSize);
  term.onTitleChange(onTitle);
  term.onBell(onBell);
  // xterm.js 6.0.0 does not shrink the alternate screen while that is not shown: it would have lines to scroll back to, and
  // a finger or wheel would move those instead of the program. A change of this option makes it look at the size again.
  term.buffer.onBufferChange(() => (term.options.scrollback ^= 1));
  search.onDidChangeResults(showCount);
  new ResizeObserver(scheduleFit).observe(el("terminal"));
  touchTerminal(term, el("terminal"), () => (el("copy-touched").hidden = false));
  term.onSelectionChange(() => {
    if (!term.hasSelection()) el("copy-touched").hidden = true;
  });
}

// WebGL where a GPU draws it. In software it is a third as fast as xterm.js's DOM elements, which stay in use then.
function drawByGpu() {
  const gl = document.createElement("canvas").getContext("webgl2", { failIfMajorPerformanceCaveat: true });
  const info = gl?.getExtension("WEBGL_debug_renderer_info");
  const renderer = info ? gl.getParameter(info.UNMASKED_RENDERER_WEBGL) : "";
  gl?.getExtension("WEBGL_lose_context")?.loseContext(); // browsers allow only a few contexts at a time
  if (!gl || SOFTWARE_RENDERER.test(renderer)) return;
  try {
    const webgl = new WebglAddon();
    webgl.onContextLoss(() => webgl.dispose());
    term.loadAddon(webgl);
  } catch {
    // DOM elements, then.
  }
}

function onShortcut(event) {
  if (!event.ctrlKey || !event.shiftKey || event.altKey) return;
  if (event.code === "KeyV") event.stopPropagation(); // the browser's own paste follows
  const action = { KeyC: copySelection, KeyF: openSearch }[event.code];
  if (!action) return;
  event.preventDefault();
  event.stopPropagation();
  action();
}

function onSearchKey(event) {
  if (event.key === "Enter") find(!event.shiftKey);
  if (event.key === "Escape") closeSearch();
}

function onPasteEvent(event) {
  event.preventDefault();
  event.stopPropagation();
  paste(event.clipboardData.getData("text/plain"));
}

function listen() {
  const click = (id, action) => el(id).addEventListener("click", action);
  click("copy", copySelection);
  click("copy-touched", copySelection);
  click("paste", pasteFromClipboard);
  click("paste-send", sendPasteDialog);
  click("paste-cancel", () => el("paste-dialog").close());
  click("find", () => (el("search").hidden ? openSearch() : closeSearch()));
  click("search-older", () => find(true));
  click("search-newer", () => find(false));
  click("search-close", closeSearch);
  click("smaller", () => changeFontSize(-1));
  click("larger", () => changeFontSize(1));
  click("full-screen", toggleFullScreen);
  click("reconnect", () => (state.phase === "taken" ? takeBack() : connect()));
  click("end", () => connection.end());
  click("ctrl", () => holdCtrl(!state.ctrlHeld));
  click("close", closePage);
  click("switch", switchTerminal);
  click("switch-cancel", () => el("switch-dialog").close());
  click("screen-reader", () => setScreenReader(!term.options.screenReaderMode));
  for (const button of document.querySelectorAll(".keys button")) {
    const { key } = button.dataset;
    button.addEventListener("pointerdown", (event) => event.preventDefault()); // the keyboard stays up
    if (key in ARROWS) repeatWhileHeld(button, () => pressKey(key));
    else if (key) button.addEventListener("click", () => pressKey(key));
  }
  el("containers").addEventListener("keydown", onContainerKey);
  el("search-text").addEventListener("input", findNewest);
  el("search-text").addEventListener("keydown", onSearchKey);
  el("terminal").addEventListener("paste", onPasteEvent, { capture: true });
  el("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    offer(el("token").value.trim());
    el("token").value = "";
  });
  el("terminal").addEventListener("mouseup", () => {
    if (el("copy-on-select").checked && term.hasSelection()) copySelection();
  });
  el("copy-on-select").addEventListener("change", (event) => setCopyOnSelect(event.target.checked));
  el("options-menu").addEventListener("toggle", (event) => {
    if (event.newState === "closed" && !TOUCH) term.focus();
  });
  document.addEventListener("fullscreenchange", onFullScreen);
  document.addEventListener("visibilitychange", () => document.hidden || setRang(false));
  document.addEventListener("keydown", onShortcut, { capture: true });
  window.addEventListener("hashchange", () => offer(takeToken()));
  window.addEventListener("themechange", () => (term.options.theme = theme()));
  window.visualViewport?.addEventListener("resize", fillViewport);
}

// Safari's on-screen keyboard covers the page instead of shrinking it.
function fillViewport() {
  const { height, scale } = window.visualViewport;
  document.documentElement.style.setProperty("--height", `${height * scale}px`);
  window.scrollTo(0, 0);
}

function takeToken() {
  const fragment = new URLSearchParams(location.hash.slice(1));
  const query = new URLSearchParams(location.search);
  const token = fragment.get("ssh_token") || query.get("ssh_token") || "";
  query.delete("ssh_token");
  if (token) history.replaceState(null, "", `${location.pathname}${String(query) && `?${query}`}`);
  return token;
}

// Opens a terminal with this token; where a shell runs, only if the user wants to lose it.
function offer(token) {
  if (!token) return;
  state.offeredToken = token;
  if (!["connected", "reconnecting"].includes(state.phase)) switchTerminal();
  else if (!el("switch-dialog").open) el("switch-dialog").showModal();
}

function switchTerminal() {
  el("switch-dialog").close();
  state.token = state.offeredToken;
  connect();
}

function start() {
  const token = takeToken();
  if (token) {
    offer(token);
    return;
  }
  state.decoder = new TextDecoder();
  const before = connection.reopen();
  if (before === "resuming") {
    state.partial = connection.drawn > 0;
    state.reusable = false; // the token went with the page before
    term.focus();
    return;
  }
  setPhase("idle", before ? say("ended") : say("noToken"));
  if (before) {
    const reloaded = performance.getEntriesByType("navigation")[0]?.type === "reload";
    const why = reloaded ? say("endedReloaded") : say("endedLeft");
    el("form-title").textContent = say("ended");
    el("form-text").textContent = `${why} ${say("openAgain")}`;
  }
  el("open").classList.toggle("primary", PLATFORM_URL === "");
  if (!TOUCH) el("token").focus();
}

function linkToPlatform() {
  if (PLATFORM_URL === "") return;
  for (const link of document.querySelectorAll("a.platform")) {
    link.href = PLATFORM_URL;
    link.hidden = false;
  }
}

openTerminal();
listen();
linkToPlatform();
setScreenReader(stored("localStorage", SCREEN_READER_KEY) === "true");
setCopyOnSelect(stored("localStorage", COPY_KEY) === "true");
el("full-screen").hidden = !document.fullscreenEnabled;
document.body.classList.remove("starting");
start();
