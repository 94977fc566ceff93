// The live view of the player page: asks the server what there is to watch, so that a no comes in words, then lets
// asciinema-player follow the session over its WebSocket, and says how that goes. Tests find the player at
// document.querySelector("#player").player.

/* global AsciinemaPlayer */

import { showMark } from "./mark.js";
import { Picture, TEXT_SIZE } from "./picture.js";
import { own, say, sentence } from "./words.js";

const TICK_MS = 1000;
const ASK_AGAIN_MS = 4000; // while the connection is lost: whether it can come back
const SILENT_SECONDS = 5; // after which it is said how long nothing was printed
const BADGES = {
  connecting: say("liveConnecting"), live: say("live"), lost: say("liveLost"), ended: say("liveEnded"), refused: say("liveRefused"),
};

const el = (id) => document.getElementById(id);

export function isLive() {
  return [location.search, location.hash].some((part) => new URLSearchParams(part.slice(1)).get("live") === "1");
}

// `text`: {text, lang}. `again`: whether it may be another answer later.
class Refusal extends Error {
  constructor(title, text, again = false) {
    super(title);
    Object.assign(this, { title, text, again });
  }
}

// `link`: {filename, token}. `page`: showWords(title, text), isLight(), and font, the terminal's.
export class LiveView {
  onchapter = () => {}; // called with {seconds, label}: a command began, or the server says something
  ondone = () => {}; // called with the exit code of the last command

  #page;
  #filename;
  #token;
  #state = "connecting";
  #answer = null; // what the server said of the session: {running, title, idle, namespace, cluster, label, colour}
  #player = null;
  #picture = new Picture();
  #size = "";
  #command = "";
  #printedAt = 0; // when the session printed last, by performance.now()
  #askAt = Infinity; // when the server is asked again, by performance.now()
  #ticking = 0;

  constructor({ filename, token }, page) {
    this.#filename = filename;
    this.#token = token;
    this.#page = page;
  }

  async start() {
    el("live").hidden = false;
    document.body.classList.add("watching");
    this.#enter("connecting");
    this.#showTitle("");
    try {
      this.#answer = await this.#ask();
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      this.#refuse(error);
      return;
    }
    this.#printedAt = performance.now() - this.#answer.idle * 1000;
    this.#showTitle(this.#answer.title);
    showMark(this.#answer);
    if (!this.#answer.running) {
      this.#enter("ended");
      this.#page.showWords(say("hasEnded"), own(say("hasEndedWhy")));
      return;
    }
    el("transport").hidden = false;
    this.#play();
    window.addEventListener("themechange", () => this.#state !== "refused" && this.#state !== "ended" && this.#play());
    this.#askAt = performance.now() + ASK_AGAIN_MS;
    this.#ticking = setInterval(() => this.#tick(), TICK_MS);
  }

  // ---- The server ----

  #url(protocol, values) {
    const url = new URL("records/live", location.href);
    url.protocol = url.protocol.replace("http", protocol);
    url.search = new URLSearchParams(values).toString();
    url.hash = "";
    return url;
  }

  // What there is to watch. Throws a Refusal.
  async #ask() {
    if (!this.#filename) throw new Refusal(say("noSessionName"), own(say("noNameWhy")));
    const headers = this.#token ? { Authorization: `Bearer ${this.#token}` } : {};
    const url = this.#url("http", { filename: this.#filename });
    const response = await fetch(url, { headers, cache: "no-store" }).catch(() => {
      throw new Refusal(say("notReached"), own(say("notReachedWhy")), true);
    });
    if (response.ok) return response.json();
    const plain = (response.headers.get("Content-Type") || "").startsWith("text/plain");
    const words = plain ? await response.text().catch(() => "") : "";
    throw this.#refusal(response.status, words.trim() && sentence(words));
  }

  #refusal(status, said) {
    if (status === 401 || status === 403) {
      return new Refusal(say("mayNotWatch"), said || own(say("watchExpired")));
    }
    if (status === 404) return new Refusal(say("noSession"), own(say("noSessionWhy")));
    return new Refusal(say("cannotWatch"), said || own(say("serverAnswered", { status })), true);
  }

  // ---- The player ----

  #play() {
    this.#player?.dispose();
    // Browsers let no page send headers with a WebSocket: the token has to stand in the query.
    const source = { driver: "websocket", url: this.#url("ws", { filename: this.#filename, token: this.#token }).href };
    const player = AsciinemaPlayer.create(source, el("player"), {
      autoPlay: true,
      controls: false,
      adaptivePalette: this.#page.isLight(),
      cursorMode: matchMedia("(prefers-reduced-motion: reduce)").matches ? "steady" : "blinking",
      fit: "none",
      terminalFontFamily: this.#page.font,
      terminalFontSize: TEXT_SIZE,
      theme: "jumpserver",
    });
    player.addEventListener("playing", () => this.#begin());
    player.addEventListener("loading", () => this.#lose());
    player.addEventListener("ended", () => this.#end());
    player.addEventListener("output", () => this.#printed());
    player.addEventListener("reset", ({ size }) => this.#resized(size));
    player.addEventListener("resize", (size) => this.#resized(size));
    player.addEventListener("marker", (label) => this.#mark(label, player.getCurrentTime()));
    this.#player = el("player").player = player;
    this.#picture.watch();
  }

  toggleFullscreen() {
    this.#picture.toggleFullscreen();
  }

  #begin() {
    this.#enter("live");
    this.#reveal();
  }

  #end() {
    this.#remark(say("lastSeen"));
    this.#enter("ended");
    this.#reveal();
  }

  // The end of a picture that is too large for the page: there most is printed.
  #reveal() {
    requestAnimationFrame(() => (el("player").scrollTop = el("player").scrollHeight));
  }

  #printed() {
    this.#printedAt = performance.now();
    this.#showMeta();
  }

  #resized({ cols, rows }) {
    this.#size = `${cols} \u00d7 ${rows}`;
    this.#showMeta();
  }

  // Labels: "$ command line", "= exit code", or words of the server's.
  #mark(label, seconds) {
    if (label.startsWith("= ")) {
      this.#command = "";
      this.ondone(Number(label.slice(2)));
    } else {
      if (label.startsWith("$ ")) this.#command = label;
      this.onchapter({ seconds, label });
    }
    this.#showMeta();
  }

  // ---- States ----

  #enter(state) {
    this.#state = state;
    el("live").dataset.state = state;
    el("live").textContent = BADGES[state];
    el("live-remark").hidden = !["lost", "ended"].includes(state) || !el("live-remark").textContent;
    el("replay").hidden = state !== "ended";
    if (state === "ended") this.#askAt = Infinity;
    el("replay").href = `#${new URLSearchParams({ filename: this.#filename, token: this.#token })}`;
    this.#showMeta();
  }

  // The player tries to come back by itself, for ever, and never says why it cannot.
  #lose() {
    if (this.#state === "live") {
      this.#askAt = performance.now() + ASK_AGAIN_MS;
      this.#remark(say("connectionLost"));
    }
    this.#enter(this.#state === "connecting" ? "connecting" : "lost");
  }

  async #askAgain() {
    this.#askAt = Infinity;
    try {
      await this.#ask();
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      if (!error.again) return this.#refuse(error);
      this.#remark(say("tryingAgain", { why: error.title }));
    }
    this.#askAt = performance.now() + ASK_AGAIN_MS;
  }

  #refuse(error) {
    clearInterval(this.#ticking);
    this.#player?.dispose();
    for (const id of ["player", "transport", "list", "chapters"]) el(id).hidden = true;
    this.#enter("refused");
    el("words").classList.add("failed");
    this.#page.showWords(error.title, error.text);
  }

  #tick() {
    this.#showMeta();
    if (this.#state !== "live" && performance.now() > this.#askAt) this.#askAgain();
  }

  // ---- Words ----

  #remark(text) {
    el("live-remark").textContent = text;
  }

  #showTitle(said) {
    const title = said || this.#filename.split("/").pop() || say("session");
    el("title").textContent = title;
    document.title = say("titleOfLive", { title });
  }

  #showMeta() {
    const { cluster } = this.#answer ?? {};
    const silent = (performance.now() - this.#printedAt) / 1000;
    const isSilent = this.#state === "live" && silent > SILENT_SECONDS;
    const parts = [cluster ? say("cluster", { name: cluster }) : "", this.#command, this.#size, isSilent ? say("nothingFor", { time: durationText(silent) }) : ""];
    const text = parts.filter(Boolean).join(" \u00b7 ");
    if (el("meta").textContent !== text) el("meta").textContent = text;
  }
}

function durationText(seconds) {
  if (seconds < 90) return say("secondsLong", { seconds: Math.round(seconds) });
  if (seconds < 5400) return say("minutesLong", { minutes: Math.round(seconds / 60) });
  return say("hoursLong", { hours: Math.round(seconds / 3600) });
}
