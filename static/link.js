// Which recording the address names, with which token, at which moment. A token is a secret: it is kept in this tab and
// leaves the address, so that an address that is copied or seen holds none.

const KEY = "token"; // in the tab's storage: of the last recording, and followed by its name of each

// What is asked for: {filename, token, t}, each "" where it is missing. Parameters in the query move to the fragment,
// which no server sees.
export function takeLink() {
  const link = new URLSearchParams(location.hash.slice(1));
  for (const [name, value] of new URLSearchParams(location.search)) if (!link.has(name)) link.set(name, value);
  const [filename, given, t] = ["filename", "token", "t"].map((name) => link.get(name) || "");
  if (!given || keep(filename, given)) link.delete("token");
  if (given || location.search) history.replaceState(null, "", `${location.pathname}#${link}`);
  return { filename, token: given || kept(filename), t };
}

// The whole address of a moment in a recording, without a token. `t`: see parseMoment.
export function linkTo(filename, t) {
  const url = new URL(location.href);
  url.search = "";
  url.hash = new URLSearchParams({ filename, t }).toString();
  return url.href;
}

// What somebody entered: a token, or a link that holds one.
export function enteredToken(text) {
  const found = /[#?&](token=[^&#\s]*)/.exec(text);
  return found ? new URLSearchParams(found[1]).get("token") : text.trim();
}

function keep(filename, token) {
  try {
    for (const key of [KEY, `${KEY} ${filename}`]) sessionStorage.setItem(key, token);
    return true;
  } catch {
    return false; // full, or forbidden: it stays in the address, or a reload would lose it
  }
}

function kept(filename) {
  try {
    return sessionStorage.getItem(`${KEY} ${filename}`) ?? sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}
