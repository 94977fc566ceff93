// The page of sessions: open ones as they are now, ended ones by the page, and what was typed in them. Filters and token
// stand behind the # of the address, as in the player: a view can be linked, and no server on the way logs it.

import { LOCALE, own, said, say, sentence } from "./words.js";

const POLL_MS = 2000;
const ENDED_POLLS = 5; // after which the ended ones are looked at, too: some were never seen open
const TYPING_MS = 500; // without a key, after which a search begins: each one stands in the ledger
const TOAST_MS = 8000;
const ROWS_BY_THEMSELVES = 500; // that scrolling brings; from here on a button does
const NEAR_END = "600px"; // of the list, where scrolling brings more
const FILTERS = { sessions: ["q", "user", "namespace", "pod", "since", "until"], commands: ["q", "user", "since", "until"] };
const PLACEHOLDERS = { sessions: say("searchSessions"), commands: say("searchCommands") };
const TITLES = { 400: say("cannotSearch"), 401: say("mayNotSee"), 403: say("mayNotSee") };
const MINUTE = 60;
const HOUR = 3600;
const DAY = 24 * HOUR;

const el = (id) => document.getElementById(id);

const state = {
  token: "",
  view: "sessions", // or "commands"
  asking: new AbortController(), // of all requests for what is shown now
  timer: null, // of the next poll
  polls: 0,
  typing: null, // of the next search
  ending: new Map(), // ids of the sessions that were asked to end, and what the server said
  chosen: null, // the session that the dialog is about
  mayEnd: false, // whether the token may end sessions, as the server says
};

class Failure extends Error {
  // `told`: {text, lang}.
  constructor(title, told, again) {
    super(title);
    Object.assign(this, { title, ...told, again }); // again: whether asking again may help
  }
}

// ---- The server ----

async function ask(path, params, options = {}) {
  const url = new URL(path, location.href);
  url.search = new URLSearchParams(params).toString();
  const headers = { ...options.headers, ...(state.token ? { Authorization: `Bearer ${state.token}` } : {}) };
  const response = await fetch(url, { cache: "no-store", ...options, headers }).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Failure(say("notReached"), own(say("pageTries")), true);
  });
  if (response.ok) return response;
  const plain = (response.headers.get("Content-Type") || "").startsWith("text/plain");
  const { status } = response;
  const words = plain ? (await response.text()).trim() : "";
  const told = words ? sentence(words) : own(say("answeredWith", { status }));
  throw new Failure(TITLES[status] ?? say("couldNotAnswer"), told, status >= 500);
}

// The filters as the server takes them: days are those of this browser's zone, the last one to its end.
function wanted() {
  const params = {};
  for (const name of FILTERS[state.view]) {
    const text = el(name).value.trim();
    if (text) params[name] = name === "since" ? midnight(text, 0) : name === "until" ? midnight(text, 1) - 0.001 : text;
  }
  return params;
}

function midnight(day, later) {
  const [year, month, date] = day.split("-").map(Number);
  return new Date(year, month - 1, date + later).getTime() / 1000;
}

// ---- Lists ----

// One list of the page. `of` takes its items out of an answer, `key` tells one item from another, `fill` draws one.
class List {
  constructor(id, { path, params, of, key, fill, row }) {
    Object.assign(this, { path, params, of, key, fill, next: "", rows: new Map() });
    this.section = el(id);
    this.template = el(row);
    this.list = this.section.querySelector("ul");
    this.button = this.section.querySelector(".more");
    this.button.addEventListener("click", () => attempt(() => this.more()));
    new IntersectionObserver(([end]) => {
      if (end.isIntersecting && this.rows.size < ROWS_BY_THEMSELVES) attempt(() => this.more());
    }, { root: document.querySelector("main"), rootMargin: NEAR_END }).observe(this.button);
  }

  clear() {
    this.list.replaceChildren();
    this.rows.clear();
    this.loading = null;
    this.tell("");
    for (const selector of [".none", ".more"]) this.section.querySelector(selector).hidden = true;
  }

  async page(before) {
    const params = { ...this.params, ...wanted(), ...(before ? { before } : {}) };
    const response = await ask(this.path, params, { signal: state.asking.signal });
    const answer = await response.json().catch((error) => {
      if (error.name === "AbortError") throw error;
      throw new Failure(say("couldNotAnswer"), own(say("notFromHere")), true);
    });
    if ("may_terminate" in answer) state.mayEnd = answer.may_terminate;
    return { items: this.of(answer), next: answer.next };
  }

  // The next page, once however often it is asked for.
  more() {
    if (this.loading) return this.loading;
    const loading = this.page(this.next).then(({ items, next }) => {
      for (const item of items) this.list.append(this.drawn(item));
      this.tell(next);
    }).finally(() => {
      if (this.loading === loading) this.loading = null;
    });
    this.loading = loading;
    return loading;
  }

  // Brings up to date what is shown of sessions that began at that time or later. Returns those that are gone.
  async again(since = -Infinity) {
    const items = [];
    let next = "";
    do {
      const page = await this.page(next);
      items.push(...page.items);
      next = page.next;
    } while (next && items.length < this.rows.size && items[items.length - 1].login_at >= since);
    items.forEach((item, index) => {
      const row = this.drawn(item);
      if (this.list.children[index] !== row) this.list.insertBefore(row, this.list.children[index] ?? null);
    });
    const kept = new Set(items.map(this.key));
    const oldest = next ? items[items.length - 1].login_at : -Infinity;
    const gone = [...this.rows.values()].filter(({ item }) => item.login_at >= oldest && !kept.has(this.key(item)));
    for (const row of gone) this.remove(row);
    this.tell(items.length < this.rows.size ? this.next : next);
    return gone.map(({ item }) => item);
  }

  remove(row) {
    const near = row.nextElementSibling ?? row.previousElementSibling;
    if (row.contains(document.activeElement)) near?.querySelector(".main").focus();
    row.remove();
    this.rows.delete(this.key(row.item));
  }

  drawn(item) {
    const key = this.key(item);
    const row = this.rows.get(key) ?? this.template.content.firstElementChild.cloneNode(true);
    this.rows.set(key, row);
    row.item = item;
    this.fill(row, item);
    return row;
  }

  tell(next) {
    this.next = next || "";
    this.button.hidden = !next;
    this.section.querySelector(".none").hidden = this.rows.size > 0;
    this.section.querySelector(".count").textContent = this.rows.size ? `${this.rows.size}${next ? "+" : ""}` : "";
  }
}

const sessions = { path: "sessions", of: (answer) => answer.sessions, key: (item) => item.session_id, row: "session-row" };
const open = new List("open", { ...sessions, params: { state: "open" }, fill: fillOpen });
const ended = new List("ended", { ...sessions, params: { state: "ended" }, fill: fillEnded });
const commands = new List("commands", {
  path: "commands",
  params: {},
  of: (answer) => answer.commands,
  key: (item) => `${item.session.session_id} ${item.seconds} ${item.text}`,
  fill: fillCommand,
  row: "command-row",
});

// ---- Rows ----

function fillOpen(row, item) {
  const ending = state.ending.get(item.session_id);
  fill(row, item, {
    hint: say("hintWatch"),
    time: say("sinceTime", { time: timeText(item.login_at) }),
    lasts: durationText(Date.now() / 1000 - item.login_at),
    state: ending ?? idleText(item),
    bytes: Number.isFinite(item.size) ? say("recordedBytes", { size: bytesText(item.size) }) : "",
  });
  row.dataset.state = ending ? "ending" : item.detached ? "detached" : "open";
  act(row, say("watch"), playerLink(item, { live: 1 }));
  const end = row.querySelector(".end");
  end.hidden = Boolean(ending) || !state.mayEnd;
  end.textContent = say("endDots");
  end.onclick = () => askForReason(item);
}

function fillEnded(row, item) {
  fill(row, item, {
    hint: say("hintReplay"),
    time: timeText(item.login_at),
    lasts: durationText(item.logout_at - item.login_at),
    state: item.reason ? said(item.reason) : say("endedState"),
    bytes: Number.isFinite(item.size) ? bytesText(item.size) : "",
  });
  act(row, say("replay"), playerLink(item, {}));
  const download = row.querySelector(".download");
  download.hidden = false;
  download.textContent = say("download");
  download.onclick = () => save(item);
}

function fillCommand(row, { session, seconds, text, exit_code: exit }) {
  const lines = { hint: say("hintReplayHere"), time: timeText(session.login_at + seconds), command: text };
  fill(row, session, { ...lines, exit: Number.isInteger(exit) ? say("exit", { code: exit }) : "" });
  row.dataset.state = exit ? "failed" : "done";
  act(row, "", playerLink(session, { t: Math.floor(seconds) }));
}

function fill(row, item, texts) {
  const place = [item.namespace, item.container_name, item.cluster].filter(Boolean).join(" \u00b7 ");
  const all = { user: item.user || say("noUser"), address: item.remote_addr, pod: item.pod_name, within: place, ...texts };
  for (const cell of row.querySelectorAll("[data-text]")) {
    const value = all[cell.dataset.text] ?? "";
    const { text, lang } = typeof value === "string" ? { text: value, lang: "" } : value;
    if (cell.textContent !== text) Object.assign(cell, { textContent: text, lang });
    cell.title = text;
  }
}

function act(row, word, link) {
  for (const anchor of row.querySelectorAll("a")) anchor.href = link;
  const button = row.querySelector(".act");
  if (button) button.textContent = word;
}

function playerLink(item, more) {
  return `player.html#${new URLSearchParams({ filename: item.filename, token: state.token, ...more })}`;
}

// ---- Words and numbers ----

function timeText(seconds) {
  const time = new Date(seconds * 1000);
  const clock = time.toLocaleTimeString(LOCALE, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
  const now = new Date();
  if (time.toDateString() === now.toDateString()) return clock;
  const year = time.getFullYear() === now.getFullYear() ? {} : { year: "numeric" };
  return `${time.toLocaleDateString(LOCALE, { day: "numeric", month: "short", ...year })}, ${clock}`;
}

function durationText(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const [minutes, hours, days] = [MINUTE, HOUR, DAY].map((unit) => Math.floor(whole / unit));
  if (!minutes) return say("secondsLong", { seconds: whole });
  if (!hours) return say("minutesLong", { minutes });
  if (!days) return say("hoursAndMinutes", { hours, minutes: String(minutes % 60).padStart(2, "0") });
  return say("daysAndHours", { days, hours: hours % 24 });
}

function idleText({ idle, detached }) {
  if (detached) return say("waitsForBrowser");
  if (!Number.isFinite(idle)) return say("onAnother"); // which alone knows
  return idle < POLL_MS / 1000 ? say("typing") : say("idleFor", { time: durationText(idle) });
}

function bytesText(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  if (bytes < 1e6) return `${(bytes / 1000).toFixed(1)} kB`;
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

function showWords({ title, text, lang }) {
  el("words-title").textContent = title;
  Object.assign(el("words-text"), { textContent: text, lang });
  el("words").hidden = false;
}

function toast(text) {
  el("toast").textContent = text;
  el("toast").hidden = false;
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => { el("toast").hidden = true; }, TOAST_MS);
}

// ---- What is shown ----

// Does something that asks the server, and says what is wrong. Returns "done", "later" where asking again may help, or "no".
async function attempt(step) {
  try {
    await step();
    el("status").textContent = "";
    document.body.classList.remove("refused");
    el("words").hidden = true;
    return "done";
  } catch (error) {
    if (error.name === "AbortError") return "no"; // something else is shown by now
    if (!(error instanceof Failure)) throw error;
    document.body.classList.toggle("refused", !error.again);
    if (error.again) el("status").textContent = say("triesAgain", { why: error.title, text: error.text });
    else showWords(error);
    return error.again ? "later" : "no";
  }
}

// Begins again with the filters as they stand.
async function show() {
  state.asking.abort();
  state.asking = new AbortController();
  clearTimeout(state.timer);
  document.body.dataset.view = state.view;
  for (const view of Object.keys(FILTERS)) el(`show-${view}`).setAttribute("aria-pressed", String(view === state.view));
  el("q").placeholder = PLACEHOLDERS[state.view];
  const some = Object.keys(wanted()).length > 0;
  el("clear").hidden = !some;
  if (some) openFilters(true);
  keepLink();
  const lists = state.view === "sessions" ? [open, ended] : [commands];
  for (const list of lists) list.clear();
  for (const list of lists) list.section.setAttribute("aria-busy", "true");
  const shown = await attempt(() => Promise.all(lists.map((list) => list.more())));
  for (const list of lists) list.section.removeAttribute("aria-busy");
  if (shown === "later") state.timer = setTimeout(show, POLL_MS);
  if (shown === "done") pollLater();
}

function pollLater() {
  clearTimeout(state.timer);
  if (!document.hidden) state.timer = setTimeout(poll, POLL_MS);
}

async function poll() {
  if (state.view !== "sessions") return;
  const polled = await attempt(async () => {
    const gone = await open.again();
    state.polls += 1;
    const since = Math.min(...gone.map((item) => item.login_at));
    if (gone.length || state.polls % ENDED_POLLS === 0) await ended.again(since);
  });
  if (polled !== "no") pollLater();
}

// ---- The end of a session ----

function askForReason(item) {
  state.chosen = item;
  const place = [item.namespace, item.pod_name, item.container_name].filter(Boolean).join("/");
  el("end-text").textContent = say("endText", { user: item.user || say("somebody"), place, time: timeText(item.login_at) });
  el("end-failure").hidden = true;
  el("reason").value = "";
  el("end-dialog").showModal();
}

async function end(event) {
  event.preventDefault();
  const { chosen } = state;
  el("end-confirm").disabled = true;
  try {
    const headers = { "Content-Type": "application/json" };
    const body = JSON.stringify({ reason: el("reason").value });
    const path = `sessions/${encodeURIComponent(chosen.session_id)}/terminate`;
    const { will } = await (await ask(path, {}, { method: "POST", headers, body })).json();
    state.ending.set(chosen.session_id, say("ending"));
    el("end-dialog").close();
    toast(sentence(will).text);
    poll();
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    el("end-failure").textContent = error.text;
    el("end-failure").hidden = false;
  } finally {
    el("end-confirm").disabled = false;
  }
}

// ---- Download ----

// Not as a link: its address would have the token, and proxies log addresses.
async function save(item) {
  const name = item.filename.split("/").pop();
  toast(say("downloading", { name }));
  try {
    const blob = await (await ask("records/play", { filename: item.filename })).blob();
    const anchor = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
    anchor.click();
    setTimeout(() => URL.revokeObjectURL(anchor.href), TOAST_MS);
  } catch (error) {
    toast(say("downloadFailed", { name, why: error instanceof Failure ? error.text : say("brokeOff") }));
  }
}

// ---- Clicks and keys ----

// A row is as good as its link; but its text can be selected.
function onClick(event) {
  const row = event.target.closest(".item");
  if (!row || event.target.closest("a, button") || getSelection().toString()) return;
  const { ctrlKey, metaKey, shiftKey } = event;
  row.querySelector(".main").dispatchEvent(new MouseEvent("click", { ctrlKey, metaKey, shiftKey, cancelable: true }));
}

function onKey(event) {
  const { target, key } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || el("end-dialog").open) return;
  const inField = target instanceof HTMLInputElement;
  if (key === "/" && !inField) el("q").focus();
  else if (key === "Escape" && inField) target.blur();
  else if (key === "ArrowDown" && (!inField || target === el("q"))) move(1);
  else if (key === "ArrowUp" && !inField) move(-1);
  else return;
  event.preventDefault();
}

// To the row below or above, over the borders of lists.
function move(by) {
  const rows = [...document.querySelectorAll(".list .main")].filter((anchor) => anchor.offsetParent);
  const here = rows.indexOf(document.activeElement?.closest(".item")?.querySelector(".main"));
  const there = here < 0 ? 0 : Math.max(0, Math.min(here + by, rows.length - 1));
  rows[there]?.focus();
}

// ---- Start ----

function takeLink() {
  const query = new URLSearchParams(location.search);
  const fragment = new URLSearchParams(location.hash.slice(1));
  const part = (name) => fragment.get(name) || query.get(name) || "";
  state.token = part("token");
  state.view = part("view") === "commands" ? "commands" : "sessions";
  for (const name of FILTERS.sessions) el(name).value = part(name);
}

function keepLink() {
  const values = { view: state.view === "sessions" ? "" : state.view, token: state.token };
  for (const name of FILTERS[state.view]) values[name] = el(name).value.trim();
  const link = new URLSearchParams(Object.entries(values).filter(([, text]) => text));
  history.replaceState(null, "", `${location.pathname}#${link}`);
}

// On a narrow screen, where they are folded up.
function openFilters(are) {
  el("filters").classList.toggle("open", are);
  el("more-filters").setAttribute("aria-expanded", String(are));
}

function choose(view) {
  state.view = view;
  show();
}

function clear() {
  for (const name of FILTERS.sessions) el(name).value = "";
  show();
}

el("stuck").remove();
takeLink();
for (const view of Object.keys(FILTERS)) el(`show-${view}`).addEventListener("click", () => choose(view));
el("filters").addEventListener("input", () => {
  clearTimeout(state.typing);
  state.typing = setTimeout(show, TYPING_MS);
});
el("filters").addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(state.typing);
  show();
});
el("clear").addEventListener("click", clear);
el("more-filters").addEventListener("click", () => openFilters(!el("filters").classList.contains("open")));
el("end-form").addEventListener("submit", end);
el("end-cancel").addEventListener("click", () => el("end-dialog").close());
document.addEventListener("click", onClick);
document.addEventListener("keydown", onKey);
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(state.timer) : poll()));
window.addEventListener("hashchange", () => {
  takeLink();
  show();
});
show();
