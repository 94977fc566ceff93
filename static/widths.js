// How many columns a character takes: what the C libraries in pods count, so that line editing there stays in step with
// the screen. They count each code point by itself; so does xterm.js's addon, but by the tables of Unicode 11.

const SINCE_THEN = [ // emoji, first and last
  [0x1f6d6, 0x1f6d7], [0x1f6dc, 0x1f6df], [0x1f6fb, 0x1f6fc], [0x1f7f0, 0x1f7f0], [0x1f90c, 0x1f90c], [0x1f972, 0x1f972],
  [0x1f977, 0x1f979], [0x1f9a3, 0x1f9a4], [0x1f9ab, 0x1f9ad], [0x1f9cb, 0x1f9cc], [0x1fa70, 0x1faff],
];
const NARROW = [0x1f93b, 0x1f946]; // no longer wide

// Lets the terminal count so. `addon`: a Unicode11Addon.
export function countAsPods(term, addon) {
  addon.activate({ unicode: { register: (tables) => term.unicode.register(renewed(tables)) } });
  term.unicode.activeVersion = "11";
}

function renewed(tables) {
  const width = tables.wcwidth.bind(tables);
  tables.wcwidth = (code) => {
    if (code < SINCE_THEN[0][0]) return width(code);
    if (SINCE_THEN.some(([first, last]) => first <= code && code <= last)) return 2;
    return NARROW.includes(code) ? 1 : width(code);
  };
  return tables;
}
