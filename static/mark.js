// The word and the colour by which one place is told from another, production above all.

const MIDDLE = 0.179; // of luminance: on what is lighter black can be read better, on what is darker white

// Shows the word on its colour ("#rrggbb", "": none) in that element. The text can be read on any colour.
export function showMark(element, word, colour) {
  Object.assign(element, { textContent: word, hidden: !word });
  element.style.setProperty("--mark", colour || null);
  element.style.setProperty("--mark-text", colour && (luminance(colour) > MIDDLE ? "#000" : "#fff"));
}

// By WCAG 2.2.
function luminance(colour) {
  const parts = [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16) / 255);
  const [red, green, blue] = parts.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}
