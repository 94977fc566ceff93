// Why a WebSocket did not open: browsers do not tell scripts, so a plain request to the same place asks.

import { say } from "./words.js";

const PROBE_TIMEOUT_MS = 5000;

// Returns words for what is wrong at `url`, and whether trying again can help. Takes 5 s at most; never throws.
// The address must be as long as the WebSocket's, but needs no token in it.
export async function whyNotOpened(url) {
  if (!navigator.onLine) return { text: say("offline"), again: true };
  try {
    const signal = AbortSignal.timeout(PROBE_TIMEOUT_MS);
    const answer = await fetch(url, { cache: "no-store", redirect: "manual", signal });
    return { text: meaning(answer, await answer.text()), again: !isTooLong(answer.status) };
  } catch (error) {
    const text = error.name === "TimeoutError" ? say("serverSilent") : say("serverUnreachable");
    return { text, again: true };
  }
}

function isTooLong(status) {
  return status === 413 || status === 414 || status === 431;
}

function meaning({ type, status }, text) {
  if (type === "opaqueredirect") return say("signInFirst");
  if (isTooLong(status)) return say("linkTooLong", { status });
  if (status === 426 || /websocket/i.test(text)) return say("noWebSocket");
  if (status === 502 || status === 504) return say("badGateway", { status });
  if (status === 503) return say("busy", { status });
  if (status === 404) return say("notHere", { status });
  return say("notLetThrough", { status });
}
