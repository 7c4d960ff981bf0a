/* Choosing, keeping and finding tokens. */

function activate(index, { scroll = false, speak = false } = {}) {
  const text = texts[state.text];
  if (!text.results.length) return;
  if (chips[state.active]) chips[state.active].classList.remove("active");
  state.active = Math.max(0, Math.min(text.results.length - 1, index));
  const chip = chips[state.active];
  chip.classList.add("active");
  byId("text").setAttribute("aria-activedescendant", chip.id);
  if (scroll) reveal(chip);
  drawPanel();
  if (speak) announce(text.results[state.active]);
}

/* Into sight, above the panel where that lies over the text. */
function reveal(chip) {
  const box = chip.getBoundingClientRect();
  const floor = matchMedia("(max-width: 64rem)").matches ? Math.min(innerHeight, byId("panel").getBoundingClientRect().top) : innerHeight;
  if (box.top < 40 || box.bottom > floor - 30) scrollBy({ top: box.top - floor / 3, behavior: "auto" });
}

let speaking = 0;
function announce(token) {
  clearTimeout(speaking);
  speaking = setTimeout(() => {
    const text = typeof token.description === "string" ? token.description.slice(0, 300) : "malformed";
    byId("live").textContent = `${token.token.trim() || "white space"}, error ${fixed(token.relative_error)}: ${text}`;
  }, 250);
}

function keep(ref) {
  const at = state.kept.findIndex((other) => same(other, ref));
  if (at >= 0) state.kept.splice(at, 1);
  else state.kept = [...state.kept.slice(0, 1), ref];
  markKept();
  drawPanel();
  const link = `#t${ref.text + 1}-${record(ref).position}`;
  if (at < 0) try { history.replaceState(null, "", link); } catch { /* a page without a history */ }
}

function markKept() {
  for (const chip of byId("text").querySelectorAll('[aria-selected="true"]')) chip.setAttribute("aria-selected", "false");
  for (const ref of state.kept) if (ref.text === state.text) chips[ref.index].setAttribute("aria-selected", "true");
}

function chooseText(index, active = 0) {
  state.text = index;
  state.active = 0;
  byId("choose").value = String(index);
  drawText();
  markKept();
  search();
  activate(active);
}

function follow() {
  const match = /^#t(\d+)-(\d+)$/.exec(location.hash);
  const text = match && texts[Number(match[1]) - 1];
  const index = text ? text.results.findIndex((token) => token.position === Number(match[2])) : -1;
  if (index < 0) return false;
  const ref = { text: Number(match[1]) - 1, index };
  if (ref.text !== state.text || !chips.length) chooseText(ref.text, index);
  activate(index, { scroll: true });
  if (!state.kept.some((other) => same(other, ref))) keep(ref);
  return true;
}

/* The token nearest to this one in the line above (-1) or below (1). */
function beside(direction) {
  const from = chips[state.active].getBoundingClientRect(), middle = (from.left + from.right) / 2;
  let line = null, best = state.active, least = Infinity;
  for (let index = state.active + direction; index >= 0 && index < chips.length; index += direction) {
    const box = chips[index].getBoundingClientRect();
    if (Math.abs(box.top - from.top) < from.height * 0.7 && line === null) continue;
    if (line === null) line = box.top;
    if (Math.abs(box.top - line) > from.height * 0.7) break;
    const distance = Math.abs((box.left + box.right) / 2 - middle);
    if (distance < least) [least, best] = [distance, index];
  }
  return best;
}

function search() {
  const needle = byId("search").value.trim();
  state.needle = needle ? new RegExp(needle.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "giu") : null;
  for (const index of state.matches) if (chips[index]) chips[index].classList.remove("hit", "within");
  const found = state.needle ? matching(texts[state.text]) : [];
  state.matches = found.map(([index]) => index);
  for (const [index, inText] of found) chips[index].classList.add("hit", ...(inText ? [] : ["within"]));
  byId("found").textContent = !state.needle ? "" : state.matches.length === 1 ? "1 token" : `${state.matches.length} tokens`;
}

/* Tokens in whose characters the needle lies, or whose explanation holds it: [index, whether in the text]. */
function matching(text) {
  const spans = [];
  const all = points(text);
  const whole = typeof all === "string" ? text.text : null;
  for (const match of text.text.matchAll(state.needle)) {
    const start = whole === null ? Array.from(text.text.slice(0, match.index)).length : match.index;
    spans.push([start, start + (whole === null ? Array.from(match[0]).length : match[0].length)]);
    if (spans.length > 5000) break;
  }
  const found = [];
  let next = 0;
  text.results.forEach((token, index) => {
    while (next < spans.length && spans[next][1] <= token.start) next += 1;
    const inText = next < spans.length && spans[next][0] < token.end;
    state.needle.lastIndex = 0;
    if (inText || (typeof token.description === "string" && state.needle.test(token.description))) found.push([index, inText]);
  });
  return found;
}

function nextMatch(direction) {
  if (!state.matches.length) return;
  const ahead = direction > 0 ? state.matches.find((index) => index > state.active) : state.matches.findLast((index) => index < state.active);
  const chosen = ahead === undefined ? state.matches[direction > 0 ? 0 : state.matches.length - 1] : ahead;
  activate(chosen, { scroll: true, speak: true });
  byId("found").textContent = `${state.matches.indexOf(chosen) + 1} of ${state.matches.length}`;
}
