// Light or dark: as the system has it, or as was chosen on this machine. Runs before the page is drawn, so that none
// flashes up in the other colours. Says "themechange" to the window when the colours have changed.

(() => {
  const KEY = "jumpserver.theme";
  const CHOICES = ["system", "light", "dark"];
  const root = document.documentElement;
  const systemIsLight = matchMedia("(prefers-color-scheme: light)");
  let choice = stored();

  // An iframe may have no storage; the choice lasts as long as the page then.
  function stored() {
    try {
      const kept = localStorage.getItem(KEY);
      return CHOICES.includes(kept) ? kept : "system";
    } catch {
      return "system";
    }
  }

  function store() {
    try {
      localStorage.setItem(KEY, choice);
    } catch {
      // Not kept, then.
    }
  }

  function show() {
    const before = root.dataset.theme;
    root.dataset.theme = choice === "system" ? (systemIsLight.matches ? "light" : "dark") : choice;
    if (before !== root.dataset.theme) window.dispatchEvent(new Event("themechange"));
  }

  // The words come later than the colours: a script that is no module cannot wait for them.
  async function label() {
    const { say } = await import("./words.js");
    const words = { system: say("themeSystem"), light: say("themeLight"), dark: say("themeDark") }[choice];
    for (const button of document.querySelectorAll("button.theme")) {
      button.querySelector("use").setAttribute("href", `icons.svg#theme-${choice}`);
      button.title = button.ariaLabel = words;
    }
  }

  function onClick(event) {
    if (!event.target.closest?.("button.theme")) return;
    choice = CHOICES[(CHOICES.indexOf(choice) + 1) % CHOICES.length];
    store();
    show();
    label();
  }

  // Chosen in another tab.
  function onStorage(event) {
    if (event.key !== KEY) return;
    choice = stored();
    show();
    label();
  }

  show();
  systemIsLight.addEventListener("change", show);
  window.addEventListener("storage", onStorage);
  document.addEventListener("click", onClick);
  document.addEventListener("DOMContentLoaded", label);
})();
