// Times of a recording. The player cuts pauses, so its clock ("shown") runs apart from the recording's ("recorded").

const WRITTEN = /^(?:(\d{1,4})h)?(?:(\d{1,6})m)?(?:(\d{1,9}(?:\.\d{1,6})?)s?)?$/; // 83.5, 83.5s, 1h2m3s

// What one clock says at a time of the other, in seconds. A pause that is cut runs by faster, so that every time has
// one of its own on the other clock.
export class Timeline {
  #recorded = [0]; // the places where the two begin, or cease, to run alike
  #shown = [0];

  // `times`: of the events that the player is given, in order; `limit`: the longest pause that it leaves, above 0.
  constructor(times, limit) {
    let previous = 0;
    let cut = 0;
    for (const time of times) {
      if (time - previous > limit) {
        this.#knot(previous, previous - cut);
        cut += time - previous - limit;
        this.#knot(time, time - cut);
      }
      previous = time;
    }
  }

  #knot(recorded, shown) {
    this.#recorded.push(recorded);
    this.#shown.push(shown);
  }

  recorded(shown) {
    return interpolated(this.#shown, this.#recorded, shown);
  }

  shown(recorded) {
    return interpolated(this.#recorded, this.#shown, recorded);
  }
}

function interpolated(from, to, value) {
  const index = Math.max(1, countUpTo(from, value)) - 1;
  const step = index + 1 < from.length ? (to[index + 1] - to[index]) / (from[index + 1] - from[index]) : 1;
  return to[index] + (value - from[index]) * step;
}

// How many of these numbers, in order, are not above the limit. `numberOf`: the number of an element.
export function countUpTo(elements, limit, numberOf = (element) => element) {
  let low = 0;
  let high = elements.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numberOf(elements[middle]) <= limit) low = middle + 1;
    else high = middle;
  }
  return low;
}

// As the player's clock has it: 01:23, 1:02:03 with two digits each, days in front where there are any.
export function clockText(seconds) {
  const whole = Math.floor(seconds);
  const parts = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60, whole % 60];
  while (parts.length > 2 && !parts[0]) parts.shift();
  return parts.map((part) => String(part).padStart(2, "0")).join(":");
}

// The seconds that the `t` of a link means; NaN for what is no time.
export function parseMoment(text) {
  const found = text && WRITTEN.exec(text);
  if (!found) return NaN;
  const [hours, minutes, seconds] = found.slice(1).map((digits) => Number(digits ?? 0));
  return hours * 3600 + minutes * 60 + seconds;
}

// The other way round, to the millisecond that has begun.
export function momentText(seconds) {
  return String(Math.floor(seconds * 1000 + 1e-6) / 1000);
}
