/* Listeners, and the first drawing. */

function themes() {
  const button = byId("theme"), names = ["system", "light", "dark"];
  const set = (name) => {
    if (name === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    button.textContent = `Theme: ${name}`;
    button.value = name;
  };
  let stored = "system";
  try { stored = localStorage.getItem("nla-theme") || stored; } catch { /* no storage for files */ }
  set(names.includes(stored) ? stored : "system");
  button.addEventListener("click", () => {
    const name = names[(names.indexOf(button.value) + 1) % names.length];
    set(name);
    try { localStorage.setItem("nla-theme", name); } catch { /* as above */ }
  });
}

function listen() {
  const text = byId("text");
  const indexOf = (target) => { const chip = target.closest && target.closest(".t"); return chip ? Number(chip.id.slice(1)) : -1; };
  let hovered = -1, waiting = false;
  text.addEventListener("pointerover", (event) => {
    hovered = event.pointerType === "mouse" ? indexOf(event.target) : -1;
    if (hovered < 0 || waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; if (hovered >= 0 && hovered !== state.active) activate(hovered); });
  });
  let touched = false;
  text.addEventListener("pointerdown", (event) => { touched = event.pointerType === "touch"; });
  text.addEventListener("click", (event) => {
    const index = indexOf(event.target);
    if (index < 0) return;
    const first = touched && index !== state.active;  // the first tap shows, the second keeps
    activate(index, { scroll: touched });
    if (!first) keep({ text: state.text, index });
  });
  text.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = { ArrowRight: () => state.active + 1, ArrowLeft: () => state.active - 1, ArrowDown: () => beside(1), ArrowUp: () => beside(-1),
      Home: () => 0, End: () => chips.length - 1 };
    if (moves[event.key]) activate(moves[event.key](), { scroll: true, speak: true });
    else if (event.key === "Enter" || event.key === " ") keep({ text: state.text, index: state.active });
    else return;
    event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !state.kept.length || event.target === byId("search")) return;
    state.kept = [];
    markKept();
    drawPanel();
  });
  byId("panel").addEventListener("click", (event) => {
    const button = event.target.closest("button.keep");
    if (!button) return;
    keep({ text: Number(button.dataset.text), index: Number(button.dataset.index) });
    const again = byId("panel").querySelector("button.keep");
    if (again) again.focus();
  });
  byId("ends").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) { activate(Number(button.dataset.index), { scroll: true, speak: true }); text.focus({ preventScroll: true }); }
  });
  let typing = 0;
  byId("search").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(() => { search(); drawPanel(); }, 80); });
  byId("search").addEventListener("keydown", (event) => { if (event.key === "Enter") { search(); nextMatch(event.shiftKey ? -1 : 1); } });
  byId("choose").addEventListener("change", () => chooseText(Number(byId("choose").value)));
  addEventListener("hashchange", follow);
}

function start() {
  themes();
  head();
  const many = new Set(texts.map((text) => `${text.pair} ${text.layer_index}`)).size > 1;
  byId("choose").append(...texts.map((text, index) => make("option", { value: index }, foreignLine(many ? `${text.name} · ${text.pair} layer ${text.layer_index}` : text.name))));
  byId("choose-field").hidden = texts.length < 2;
  if (extra.pages.length) {
    const here = decodeURIComponent(location.pathname.split("/").pop());
    byId("pages").hidden = false;
    byId("pages").append("Files: ", ...extra.pages.map((page, index) => page.file === here ? make("b", { "aria-current": "page" }, String(index + 1))
      : make("a", { href: encodeURI(page.file), title: foreignLine(page.texts.join(", ")).slice(0, 200) }, String(index + 1))));
  }
  listen();
  drawFigures();
  if (!follow()) chooseText(0, firstGood());
}

/* For places that take no elements. */
function foreignLine(text) {
  const shown = text.length > 120 ? `${text.slice(0, 120)}…` : text;
  return shown.replace(UNSEEN, "·").replace(/[\n\t]/g, " ");
}

/* The token that is shown first: the best explained one, so that the panel is not empty. */
function firstGood() {
  let best = 0;
  texts[0].results.forEach((token, index) => { if (token.relative_error < texts[0].results[best].relative_error) best = index; });
  return best;
}

start();
