// Why a WebSocket did not open: browsers do not tell scripts, so a plain request to the same place asks.

const PROBE_TIMEOUT_MS = 5000;

// Returns words for what is wrong at `url`, and whether trying again can help. Takes 5 s at most; never throws.
// The address must be as long as the WebSocket's, but needs no token in it.
export async function whyNotOpened(url) {
  if (!navigator.onLine) return { text: "This device is offline.", again: true };
  try {
    const signal = AbortSignal.timeout(PROBE_TIMEOUT_MS);
    const answer = await fetch(url, { cache: "no-store", redirect: "manual", signal });
    return { text: meaning(answer, await answer.text()), again: !isTooLong(answer.status) };
  } catch (error) {
    const text = error.name === "TimeoutError" ? "The server does not answer." : "The server could not be reached.";
    return { text, again: true };
  }
}

function isTooLong(status) {
  return status === 413 || status === 414 || status === 431;
}

function meaning({ type, status }, text) {
  const said = `HTTP status ${status}`;
  if (type === "opaqueredirect") return "Something in front of the server wants a sign-in first.";
  if (isTooLong(status)) return `The link is longer than the server, or a proxy in front of it, accepts (${said}).`;
  if (status === 426 || /websocket/i.test(text)) {
    return "The server answers, but the WebSocket does not get through: a proxy or firewall may stop it.";
  }
  if (status === 502 || status === 504) return `A proxy answers, but the server behind it does not (${said}).`;
  if (status === 503) return `The server is busy or being restarted (${said}).`;
  if (status === 404) return `There is no jumpserver at this address (${said}).`;
  return `A proxy in front of the server did not let the terminal through (${said}).`;
}
