// Touch on the terminal, of which xterm.js 6.0.0 knows nothing (its issue 5489): a swipe scrolls, a long press selects.
// And on the key bar: a key that is held repeats.

const LONG_PRESS_MS = 450; // below Android's 500, so that its context menu comes second
const SLOP_PX = 10; // a finger that has moved less has not moved
const FLICK_MS = 60; // a finger that rests longer before it leaves throws nothing
const GLIDE_MS = 325; // in which a thrown scroll loses all but a third of its speed
const GLIDE_END_PX_PER_MS = 0.03;
const REPEAT_DELAY_MS = 400;
const REPEAT_MS = 60;

// Lets fingers scroll and select in the terminal that is open in `element`. Calls onSelect when a selection is made.
export function touchTerminal(term, element, onSelect) {
  const touch = {
    mode: "none", // none, pressed, scrolling, selecting, gliding
    x: 0,
    y: 0,
    time: 0,
    speed: 0, // pixels a millisecond; above 0 towards newer lines
    rest: 0, // pixels not scrolled yet, less than a line
    word: null, // the cells of the word that the long press was on: [start, end)
    timer: 0,
  };

  function halt() {
    clearTimeout(touch.timer);
    touch.mode = "none";
  }

  function start(event) {
    const caught = touch.mode === "gliding";
    halt();
    if (event.touches.length > 1 || event.target.closest(".scrollbar")) return;
    if (caught) event.preventDefault(); // no click: the finger only stops what glides
    const { clientX, clientY } = event.touches[0];
    Object.assign(touch, { mode: "pressed", x: clientX, y: clientY, time: event.timeStamp, speed: 0, rest: 0 });
    touch.timer = setTimeout(selectWord, LONG_PRESS_MS);
  }

  function move(event) {
    if (touch.mode === "none") return;
    const { clientX, clientY } = event.touches[0];
    if (touch.mode === "pressed" && Math.hypot(clientX - touch.x, clientY - touch.y) > SLOP_PX) {
      clearTimeout(touch.timer);
      touch.mode = "scrolling";
    }
    if (event.cancelable) event.preventDefault();
    if (touch.mode === "scrolling") drag(clientX, clientY, event.timeStamp);
    if (touch.mode === "selecting") extendTo(clientX, clientY);
  }

  function drag(x, y, time) {
    const speed = (touch.y - y) / Math.max(1, time - touch.time);
    touch.speed = 0.7 * speed + 0.3 * touch.speed;
    scroll(touch.y - y);
    Object.assign(touch, { x, y, time });
  }

  function end(event) {
    const { mode } = touch;
    halt();
    if (mode === "scrolling" || mode === "selecting") event.preventDefault(); // no click
    if (mode === "selecting") onSelect();
    if (mode === "scrolling" && !goesToProgram() && event.timeStamp - touch.time < FLICK_MS) {
      Object.assign(touch, { mode: "gliding", time: performance.now() });
      requestAnimationFrame(glide);
    }
  }

  function glide(now) {
    if (touch.mode !== "gliding") return;
    const ms = Math.max(0, now - touch.time);
    scroll(touch.speed * ms);
    Object.assign(touch, { speed: touch.speed * Math.exp(-ms / GLIDE_MS), time: Math.max(now, touch.time) });
    if (Math.abs(touch.speed) < GLIDE_END_PX_PER_MS) halt();
    else requestAnimationFrame(glide);
  }

  function scroll(pixels) {
    const { lineHeight } = grid();
    const lines = Math.trunc((touch.rest + pixels) / lineHeight);
    touch.rest += pixels - lines * lineHeight;
    if (!goesToProgram()) term.scrollLines(lines);
    else for (let i = 0; i < Math.abs(lines); i += 1) turnWheel(Math.sign(lines));
  }

  // Whether scrolling is the program's business: it has the mouse, or a screen without scrollback.
  function goesToProgram() {
    return term.buffer.active.type === "alternate" || !["none", "x10"].includes(term.modes.mouseTrackingMode);
  }

  // xterm.js makes of it what the program asked for: a wheel report, or an arrow key.
  function turnWheel(lines) {
    const where = { clientX: touch.x, clientY: touch.y, bubbles: true, cancelable: true };
    grid().screen.dispatchEvent(new WheelEvent("wheel", { deltaY: lines, deltaMode: WheelEvent.DOM_DELTA_LINE, ...where }));
  }

  function grid() {
    const screen = element.querySelector(".xterm-screen");
    const box = screen.getBoundingClientRect();
    return { screen, box, lineHeight: box.height / term.rows, cellWidth: box.width / term.cols };
  }

  // Cells are counted through the whole buffer, from its first line.
  function cellAt(x, y) {
    const { box, lineHeight, cellWidth } = grid();
    const within = (value, count) => Math.min(count - 1, Math.max(0, Math.floor(value)));
    const row = term.buffer.active.viewportY + within((y - box.top) / lineHeight, term.rows);
    return row * term.cols + within((x - box.left) / cellWidth, term.cols);
  }

  function selectWord() {
    touch.mode = "selecting";
    const cell = cellAt(touch.x, touch.y);
    const line = term.buffer.active.getLine(Math.floor(cell / term.cols));
    const inWord = (column) => {
      const found = line.getCell(column);
      const text = found?.getChars();
      return Boolean(found) && (found.getWidth() === 0 || (text !== "" && !term.options.wordSeparator.includes(text)));
    };
    const column = cell % term.cols;
    let [first, last] = [column, column];
    while (inWord(column) && inWord(first - 1)) first -= 1;
    while (inWord(column) && inWord(last + 1)) last += 1;
    touch.word = [cell - column + first, cell - column + last + 1];
    select(...touch.word);
  }

  function extendTo(x, y) {
    const { box } = grid();
    if (y < box.top) term.scrollLines(-1);
    if (y > box.bottom) term.scrollLines(1);
    const cell = cellAt(x, y);
    select(Math.min(touch.word[0], cell), Math.max(touch.word[1], cell + 1));
  }

  function select(start, end) {
    term.select(start % term.cols, Math.floor(start / term.cols), end - start);
  }

  // A long press opens the browser's menu, and xterm.js would move its input under the finger for it.
  function keepMenuShut(event) {
    if (touch.mode === "none") return;
    event.preventDefault();
    event.stopPropagation();
  }

  element.addEventListener("touchstart", start, { passive: false });
  element.addEventListener("touchmove", move, { passive: false });
  element.addEventListener("touchend", end);
  element.addEventListener("touchcancel", halt);
  element.addEventListener("contextmenu", keepMenuShut, { capture: true });
}

// Calls `press` at a click, and again and again while the button is held.
export function repeatWhileHeld(button, press) {
  const held = { timer: 0, repeated: false };
  const release = () => clearTimeout(held.timer);
  const repeat = () => {
    if (button.offsetParent === null) return; // the session has ended, and the key bar is gone
    held.repeated = true;
    held.timer = setTimeout(repeat, REPEAT_MS);
    press();
  };
  button.addEventListener("pointerdown", () => {
    release();
    Object.assign(held, { repeated: false, timer: setTimeout(repeat, REPEAT_DELAY_MS) });
  });
  for (const type of ["pointerup", "pointercancel", "pointerleave"]) button.addEventListener(type, release);
  button.addEventListener("click", (event) => {
    if (!held.repeated || event.detail === 0) press(); // 0: by a keyboard
  });
  button.addEventListener("contextmenu", (event) => event.preventDefault());
}
