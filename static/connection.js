// One shell's connection to the server: watched, so that it never looks alive when it is not; it acknowledges what is
// drawn, and comes back to the same shell after a drop or a reload. Knows nothing of what the page looks like.

const SUBPROTOCOL = "jumpserver.v1";
export const CLOSE_USER = 1000; // ends the shell
const CLOSE_LOST = 1006; // how browsers tell that there was no close frame (RFC 6455, section 7.4.1)
const CLOSE_DROPPED = 4001; // this connection is given up; the shell waits
const FINAL_CODE = 4400; // from here on the server says that trying again is of no use
const HANDSHAKE_MS = 30_000; // browsers wait for minutes; a platform that is asked has 10 s
const RESUME_HANDSHAKE_MS = 8000;
const TICK_MS = 1000;
const PING_MS = 5000; // without a message, after which the server is asked
const AMBER_MS = 5000; // without an answer to that
const RED_MS = 20_000; // without one, after which the connection is given up
const PAUSES_MS = [0, 250, 500, 1000, 2000, 4000]; // before each try to come back
const ACK_BYTES = 32 * 1024; // until the server says otherwise
const ACK_MS = 500;
const REPLAY_BYTES = 256 * 1024; // of what was drawn before a reload
const KEY = "jumpserver.resume"; // in sessionStorage: of this tab

// `page` is told: session(message), choose(message), output(bytes, drawn), skipped(bytes, drawn), notice(text), replayed(), silent(is),
// lost(seconds left), over({event, end, upgraded, opened, taken}). `drawn` is to be called once that is on the screen. page.size()
// gives {cols, rows}.
export class Connection {
  constructor(page) {
    this.page = page;
    this.socket = null;
    this.opened = false; // whether the server has said of which session this is
    this.taken = false; // another page has the shell now
    this.last = null; // the server's last words
    this.lostUntil = 0; // when the grace of a lost connection is over; 0: it is not lost
    this.shell = {}; // tells one from the next
    this.resume = null; // what the server said of coming back: {url, secret, grace}
    this.received = 0; // positions in the session's output
    this.drawn = 0;
    this.acknowledged = 0;
    this.ackEvery = ACK_BYTES;
    this.replayUntil = 0; // before a reload all up to there was drawn
    setInterval(() => this.tick(), TICK_MS);
    addEventListener("online", () => this.hurry());
    addEventListener("offline", () => this.giveUp());
    addEventListener("pagehide", () => this.remember());
    document.addEventListener("visibilitychange", () => document.hidden || this.hurry());
  }

  // Opens a new shell.
  open(url) {
    Object.assign(this, { resume: null, received: 0, drawn: 0, acknowledged: 0, replayUntil: 0, lostUntil: 0 });
    this.shell = {};
    this.dial(url, HANDSHAKE_MS);
  }

  // Goes on with the shell that this tab had a moment ago: "resuming", or "ended" where that cannot be; else "".
  reopen() {
    const kept = read();
    if (!kept) return "";
    if (!kept.resume || Date.now() > kept.at + kept.resume.grace * 1000) {
      this.forget();
      return "ended";
    }
    const position = Math.max(0, kept.drawn - REPLAY_BYTES);
    Object.assign(this, { resume: kept.resume, received: position, drawn: position, replayUntil: kept.drawn });
    this.comeBack();
    return "resuming";
  }

  send(message) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  get bufferedAmount() {
    return this.socket?.bufferedAmount ?? 0;
  }

  // What was drawn before is drawn again: the terminal's answers to it were sent then.
  get replays() {
    return this.drawn < this.replayUntil;
  }

  // Ends the shell.
  end() {
    this.forget();
    this.socket?.close(CLOSE_USER);
  }

  // Ends the shell without another word to the page. While the connection is lost nobody can be told: it has its grace.
  leave() {
    clearTimeout(this.retry);
    this.forget();
    this.drop(CLOSE_USER);
  }

  drop(code = CLOSE_DROPPED) {
    if (!this.socket) return;
    Object.assign(this.socket, { onopen: null, onmessage: null, onclose: null });
    this.socket.close(code);
    this.socket = null;
  }

  dial(url, limit, first) {
    this.drop();
    const socket = new WebSocket(url, [SUBPROTOCOL]);
    Object.assign(this, { socket, last: null, taken: false, opened: false, upgraded: false, asked: 0, amber: false });
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      this.upgraded = true;
      if (first) this.send(first);
    };
    socket.onmessage = (event) => this.take(event.data);
    socket.onclose = (event) => this.closed(event);
    setTimeout(() => {
      if (socket !== this.socket || this.opened || (this.upgraded && !first)) return;
      this.drop();
      this.closed({ code: CLOSE_LOST, reason: "" });
    }, limit);
  }

  take(data) {
    this.heard = performance.now();
    this.asked = 0;
    if (this.amber) this.page.silent(false);
    this.amber = false;
    if (typeof data !== "string") {
      const bytes = new Uint8Array(data);
      this.received += bytes.length;
      this.page.output(bytes, this.counter(bytes.length));
      return;
    }
    let message;
    try {
      message = JSON.parse(data);
    } catch {
      return;
    }
    if (message?.type === "session") this.begin(message);
    else if (message?.type === "end") this.last = message;
    else if (message?.type === "choose") this.page.choose(message);
    else if (message?.type === "ack") this.ackEvery = message.every;
    else if (message?.type === "notice") this.page.notice(message.text);
    else if (message?.type === "taken") this.lose(message.secret);
    else if (message?.type === "skipped") {
      this.received += message.bytes;
      this.page.skipped(message.bytes, this.counter(message.bytes));
    }
  }

  begin(session) {
    const lost = this.lostUntil > 0;
    Object.assign(this, { opened: true, lostUntil: 0, tries: 0, resume: session.resume, ackEvery: ACK_BYTES });
    this.drawn += session.position - this.received; // where the server has less than was asked for
    this.received = session.position;
    this.page.session(session, lost);
    this.acknowledge();
  }

  lose(secret) {
    this.taken = true;
    this.forget();
    if (this.resume) this.resume.secret = secret;
  }

  // A function to be called once so many bytes more are drawn.
  counter(size) {
    const shell = this.shell;
    return () => {
      if (shell !== this.shell) return; // an earlier one's
      const replayed = this.replays;
      this.drawn += size;
      if (replayed && !this.replays) this.page.replayed();
      clearTimeout(this.ackTimer);
      if (this.drawn - this.acknowledged >= this.ackEvery) this.acknowledge();
      else this.ackTimer = setTimeout(() => this.acknowledge(), ACK_MS);
    };
  }

  acknowledge() {
    if (!this.opened || this.lostUntil) return;
    this.acknowledged = this.drawn;
    this.send({ type: "ack", drawn: this.drawn });
    this.remember();
  }

  remember() {
    if (!this.opened || this.taken || this.last) return;
    keep(JSON.stringify({ resume: this.resume, drawn: this.drawn, at: Date.now() }));
  }

  forget() {
    keep("");
  }

  // ---- The heartbeat ----

  tick() {
    if (this.lostUntil) this.countDown();
    else if (this.opened) this.listen();
  }

  listen() {
    const now = performance.now();
    if (this.asked && now - this.asked >= RED_MS) this.giveUp();
    else if (this.asked && now - this.asked >= AMBER_MS) this.page.silent((this.amber = true));
    else if (!this.asked && now - this.heard >= PING_MS) this.ask();
  }

  ask() {
    this.asked = performance.now();
    this.send({ type: "ping" });
  }

  // The network is there again, or somebody looks: no time to wait.
  hurry() {
    if (this.lostUntil) this.tryAgain(0);
    else if (this.opened && !this.asked) this.ask();
  }

  // ---- After a drop ----

  giveUp() {
    if (!this.opened || this.lostUntil || this.taken || this.last) return;
    this.drop();
    this.closed({ code: CLOSE_LOST, reason: "" });
  }

  closed(event) {
    const final = this.last || this.taken || event.code === CLOSE_USER || event.code >= FINAL_CODE;
    if (!final && this.resume && (this.opened || this.lostUntil)) {
      if (this.opened) this.comeBack();
      else this.tryAgain();
      return;
    }
    this.over(event);
  }

  // Also takes the shell back from a page that has taken it over.
  comeBack() {
    Object.assign(this, { lostUntil: performance.now() + this.resume.grace * 1000, tries: 0 });
    this.page.lost(this.resume.grace);
    this.tryAgain();
  }

  tryAgain(pause = PAUSES_MS[Math.min(this.tries++, PAUSES_MS.length - 1)] * (0.5 + Math.random())) {
    clearTimeout(this.retry);
    this.opened = false;
    this.retry = setTimeout(() => {
      const words = { type: "resume", secret: this.resume.secret, drawn: this.received, ...this.page.size() };
      this.dial(webSocketUrl(this.resume.url), RESUME_HANDSHAKE_MS, words);
    }, pause);
  }

  countDown() {
    const left = Math.ceil((this.lostUntil - performance.now()) / 1000);
    if (left > 0) this.page.lost(left);
    else this.over({ code: CLOSE_LOST, reason: "" });
  }

  over(event) {
    clearTimeout(this.retry);
    clearTimeout(this.ackTimer);
    const opened = this.opened || this.lostUntil > 0;
    const { upgraded, taken, last: end } = this;
    if (!taken) this.resume = null;
    this.drop();
    Object.assign(this, { lostUntil: 0, opened: false });
    this.forget();
    this.page.over({ event, end, upgraded, opened, taken });
  }
}

export function webSocketUrl(path) {
  const url = new URL(path, location.href);
  url.protocol = location.protocol.replace("http", "ws");
  url.hash = "";
  return url.href;
}

function read() {
  try {
    return JSON.parse(sessionStorage.getItem(KEY));
  } catch {
    return null;
  }
}

// An iframe may have no storage; nothing is kept then.
function keep(text) {
  try {
    sessionStorage.setItem(KEY, text);
  } catch {
    // A reload ends the shell, then.
  }
}
