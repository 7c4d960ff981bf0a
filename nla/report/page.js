"use strict";
/* Draws the page from its two data blocks. Every text of the data enters as a text node, never as markup. */
(() => {
const byId = (id) => document.getElementById(id);
const report = JSON.parse(byId("records").textContent);
const extra = JSON.parse(byId("extra").textContent);
const texts = report.texts;
const LONG = 3000, LONG_TOKEN = 120, ENDS = 8;
const state = { text: 0, active: 0, kept: [], needle: null, matches: [] };
let chips = [];

/* --- building blocks ---------------------------------------------------------------------------------------------- */

function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const NAMES = { 0x200b: "ZWSP", 0x200e: "LRM", 0x200f: "RLM", 0x2028: "LS", 0x2029: "PS", 0x202a: "LRE", 0x202b: "RLE",
  0x202c: "PDF", 0x202d: "LRO", 0x202e: "RLO", 0x2060: "WJ", 0x2066: "LRI", 0x2067: "RLI", 0x2068: "FSI", 0x2069: "PDI",
  0x61c: "ALM", 0xad: "SHY", 0xfeff: "BOM", 0x85: "NEL" };
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]/gu;

/* A character that shows nothing, moves the cursor or turns the writing direction, as a sign. */
function sign(character) {
  const code = character.codePointAt(0);
  const hex = "U+" + code.toString(16).toUpperCase().padStart(4, "0");
  const shown = code < 0x20 ? String.fromCharCode(0x2400 + code) : code === 0x7f ? "\u2421" : NAMES[code] || hex;
  return make("span", { class: "sym", title: hex }, shown);
}

function plain(text, into) {
  let from = 0;
  for (const match of text.matchAll(UNSEEN)) {
    into.append(text.slice(from, match.index), sign(match[0]));
    from = match.index + match[0].length;
  }
  into.append(text.slice(from));
}

/* Text from the data: isolated, unseen characters as signs, what is searched for marked, cut with a note. */
function foreign(text, most = LONG) {
  const element = make("bdi");
  const shown = text.length > most ? text.slice(0, most).replace(/[\ud800-\udbff]$/, "") : text;
  let from = 0;
  if (state.needle) {
    for (const match of shown.matchAll(state.needle)) {
      if (!match[0]) break;
      plain(shown.slice(from, match.index), element);
      const mark = make("mark");
      plain(match[0], mark);
      element.append(mark);
      from = match.index + match[0].length;
    }
  }
  plain(shown.slice(from), element);
  if (shown.length < text.length) {
    element.append(make("span", { class: "note" }, ` … (${(text.length - shown.length).toLocaleString("en")} more characters)`));
  }
  return element;
}

const fixed = (value, digits = 2) => value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", "\u2212");
const share = (value) => value < 0.005 ? "<1 %" : `${Math.round(100 * value)} %`;
const width = (element, percent) => { element.style.width = `${Math.max(0, Math.min(100, percent))}%`; return element; };
const record = (ref) => texts[ref.text].results[ref.index];
const same = (one, other) => one.text === other.text && one.index === other.index;
const points = (text) => text.points || (text.points = /[\ud800-\udfff]/.test(text.text) ? Array.from(text.text) : text.text);
const slice = (text, start, end) => { const all = points(text); return typeof all === "string" ? all.slice(start, end) : all.slice(start, end).join(""); };
const part = (text, start, end) => /[\ud800-\udfff]/.test(text) ? Array.from(text).slice(start, end).join("") : text.slice(start, end);

function verdict(error) {
  if (error <= 0.25) return "of the mean’s error: close";
  if (error <= 0.75) return "of the mean’s error: partly there";
  if (error <= 1) return "of the mean’s error: hardly better than the mean";
  return "times the mean’s error: worse than saying nothing";
}

/* --- header ------------------------------------------------------------------------------------------------------- */

function head() {
  const layers = [...new Set(texts.map((text) => text.layer_index))];
  const models = [...new Set(texts.map((text) => text.model))];
  byId("title").replaceChildren(`What layer ${layers.join(", ")} of `, foreign(models.join(", "), 200), " says");
  document.title = `Layer ${layers.join(", ")} of ${models.join(", ").slice(0, 80)}`;
  const first = texts[0];
  const facts = [
    ["pair", [...new Set(texts.map((text) => text.pair))].filter(Boolean).join(", ")],
    ["stage", [...new Set(texts.map((text) => text.stage))].filter(Boolean).join(", ")],
    ["model’s commit", first.revision && first.revision.slice(0, 12)],
    ["evaluated on", extra.about.n && `${extra.about.n} activations of ${extra.about.documents} held-out documents`],
    ["weights", extra.about.dtype], ["seed", extra.about.seed === undefined ? "" : String(extra.about.seed)],
    ["made by", report.program],
  ];
  byId("facts").append(...facts.filter(([, value]) => value).map(([name, value]) => make("span", {}, `${name} `, make("b", {}, foreign(value, 300)))));
  byId("foot").append(extra.about.command ? make("span", {}, "Command: ", foreign(extra.about.command, 600), ". ") : "",
    "Everything on this page is in the file itself; nothing is loaded.");
  const measured = extra.bars.filter((bar) => bar.value !== null);
  const bars = measured.length ? measured : ownBars();
  byId("bars").append(barTable(bars));
  byId("bars-note").textContent = measured.length
    ? "FVE: fraction of variance explained on held-out documents, with 95 % intervals by document. The grey rows need no reading of the activation: a pair has to be above each."
    : "Of the tokens on this page alone: 1 − Σ error / Σ error of the mean activation. Without intervals, since a few texts give none; evaluate.py measures on many.";
}

function ownBars() {
  const all = texts.flatMap((text) => text.results);
  const of = (error) => 1 - all.reduce((sum, token) => sum + error(token), 0) / all.reduce((sum, token) => sum + token.mse_of_mean, 0);
  const others = all.every((token) => token.nearest_wrong);
  return [
    { label: "these explanations", value: of((token) => token.mse), kind: "pair" },
    others && { label: "the best wrong one of the same text", value: of((token) => token.nearest_wrong.relative_error * token.mse_of_mean), kind: "control" },
    { label: "mean activation", value: 0, kind: "control" },
  ].filter(Boolean);
}

function barTable(bars) {
  const low = Math.max(-1, Math.min(0, ...bars.flatMap((bar) => [bar.value, ...(bar.interval || [])])) - 0.02);
  const at = (value) => 100 * (Math.max(low, Math.min(1, value)) - low) / (1 - low);
  const rows = bars.map((bar) => {
    const fill = width(make("i", { class: "fill" }), Math.abs(at(bar.value) - at(0)));
    fill.style.left = `${Math.min(at(bar.value), at(0))}%`;
    const zero = make("i", { class: "zero" });
    zero.style.left = `${at(0)}%`;
    const plot = make("div", {}, fill, zero);
    if (bar.interval) {
      const span = width(make("i", { class: "span" }), Math.max(0.6, at(bar.interval[1]) - at(bar.interval[0])));
      span.style.left = `${at(bar.interval[0])}%`;
      plot.append(span);
    }
    if (bar.value < low) plot.append(make("i", { class: "out", title: "beyond the scale" }, "◂"));
    const interval = bar.interval ? make("small", {}, ` (${fixed(bar.interval[0])} to ${fixed(bar.interval[1])})`) : null;
    return make("tr", { class: bar.kind }, make("th", { scope: "row" }, bar.label), make("td", { class: "plot", "aria-hidden": "true" }, plot),
      make("td", { class: "num" }, fixed(bar.value), interval));
  });
  return make("table", { class: "bars" }, make("caption", { class: "visually-hidden" }, "Fraction of variance explained"), make("tbody", {}, ...rows));
}

/* --- the text ----------------------------------------------------------------------------------------------------- */

/* What a token looks like: spaces before it stay outside the chip; a token of white space alone becomes signs. */
function appearance(text, token, before) {
  let raw = token.token;
  if (raw.includes("\ufffd") && token.end > token.start) {  // a piece of a character
    raw = before && before.start === token.start && before.end === token.end ? "·" : slice(text, token.start, token.end);
  }
  const lead = /^[ ]*/.exec(raw)[0];
  const rest = raw.slice(lead.length);
  if (!rest.trim()) {
    const signs = [...raw].slice(0, 12).map((c) => c === "\n" ? "⏎" : c === "\t" ? "⇥" : "␣").join("");
    return { lead: "", shown: raw ? signs + (raw.length > 12 ? `×${raw.length}` : "") : "∅", blank: true, breaks: raw.includes("\n") };
  }
  return { lead: lead ? " " : "", shown: rest.replace(/\n/g, "⏎").replace(/\t/g, "⇥"), blank: false, breaks: rest.includes("\n") };
}

function drawText() {
  const text = texts[state.text];
  const fragment = document.createDocumentFragment();
  let before = null;
  chips = text.results.map((token, index) => {
    const look = appearance(text, token, before);
    before = token;
    const error = token.relative_error;
    const bad = error > 1;
    const classes = ["t", bad && "bad", look.blank && "sign", token.description === undefined || token.description === null ? "malformed" : ""];
    const chip = make("span", { role: "option", id: `t${index}`, class: classes.filter(Boolean).join(" "), "aria-selected": "false",
      title: `error ${fixed(error)}` });
    chip.style.setProperty("--a", Math.min(1, Math.abs(1 - error)).toFixed(3));
    chip.style.setProperty("--w", `${Math.min(100, 50 * error).toFixed(1)}%`);
    const shown = look.shown.length > LONG_TOKEN ? look.shown.slice(0, LONG_TOKEN).replace(/[\ud800-\udbff]$/, "") : look.shown;
    plain(shown, chip);
    if (shown.length < look.shown.length) chip.append(make("span", { class: "note" }, ` … ${(look.shown.length - shown.length).toLocaleString("en")} more`));
    if (look.lead) fragment.append(" ");
    fragment.append(chip);
    if (look.breaks) fragment.append(make("br"));
    return chip;
  });
  byId("text").replaceChildren(fragment);
  const worth = (error) => text.results.reduce((sum, token) => sum + error(token), 0);
  const asked = text.results.filter((token) => token.nearest_wrong);
  const found = asked.filter((token) => token.relative_error < token.nearest_wrong.relative_error).length;
  const malformed = text.results.filter((token) => typeof token.description !== "string").length;
  const unusual = text.results.filter((token) => token.remark).length;
  byId("text-facts").textContent = [
    `${text.results.length} tokens, ${fixed(1 - worth((t) => t.mse) / worth((t) => t.mse_of_mean))} explained`,
    asked.length && `own explanation nearest for ${found} of ${asked.length} (by chance 1)`,
    malformed && `${malformed} malformed`, unusual && `${unusual} unlike the training activations`,
    text.left_out && `${text.left_out} further tokens left out`,
    text.mean === "text" && "the mean is this text’s own",
  ].filter(Boolean).join(" · ");
  drawEnds(text);
}

function drawEnds(text) {
  const order = text.results.map((_, index) => index).sort((a, b) => text.results[a].relative_error - text.results[b].relative_error);
  const entry = (index) => {
    const token = text.results[index];
    return make("li", {}, make("button", { type: "button", "data-index": index }, make("span", {}, fixed(token.relative_error)),
      make("span", { class: "tok" }, foreign(token.token.trim() || "␣", 60)), make("span", { class: "snip" }, foreign(token.description || "malformed", 140))));
  };
  const count = Math.min(ENDS, Math.ceil(order.length / 2));
  byId("best").replaceChildren(...order.slice(0, count).map(entry));
  byId("worst").replaceChildren(...order.slice(order.length - count).reverse().map(entry));
}

/* --- the panel ---------------------------------------------------------------------------------------------------- */

function card(ref) {
  const token = record(ref), text = texts[ref.text];
  const kept = state.kept.some((other) => same(other, ref));
  const button = make("button", { type: "button", class: "quiet keep", "data-text": ref.text, "data-index": ref.index, "aria-pressed": String(kept) }, kept ? "Let go" : "Keep");
  const where = make("p", { class: "where" }, `token ${token.position} · id ${token.token_id} · norm ${Number(token.l2_norm.toPrecision(3))} · `,
    make("a", { href: `#t${ref.text + 1}-${token.position}` }, "link"));
  if (ref.text !== state.text || state.kept.some((other) => other.text !== ref.text)) where.append(" · ", foreign(text.name, 80), `, layer ${text.layer_index}`);
  const element = make("article", { class: "card token", "aria-label": `Token ${token.position}` },
    make("header", {}, make("div", {}, make("h3", {}, foreign(token.token.trim() ? token.token.trim() : JSON.stringify(token.token), 400)), where), button));
  const meter = make("div", { class: token.relative_error > 1 ? "meter bad" : "meter", "aria-hidden": "true" }, width(make("i"), 50 * token.relative_error));
  element.append(make("section", { class: "score" }, make("b", {}, fixed(token.relative_error)), make("span", {}, verdict(token.relative_error)), meter,
    make("span", { class: "scale", "aria-hidden": "true" }, make("span", {}, "0"), make("span", {}, "1, the mean"), make("span", {}, "2")),
    make("span", { class: "scale" }, `cosine ${fixed(token.cosine_similarity)}`)));
  if (token.remark) element.append(make("section", {}, make("p", { class: "remark" }, "Unlike the training activations, so the text may mean nothing: ", foreign(token.remark, 400))));
  element.append(said(token));
  if (token.agreement !== null && token.agreement !== undefined) element.append(confidence(token));
  if (token.next_words && token.next_words.length) {
    element.append(make("section", {}, make("h4", {}, "The model itself expects next"), make("ul", { class: "next" },
      ...token.next_words.map(([word, probability]) => make("li", {}, foreign(word.trim() ? word : JSON.stringify(word), 60), make("small", {}, share(probability)))))));
  }
  if (token.nearest_wrong) element.append(wrong(token, text));
  return element;
}

function said(token) {
  const section = make("section", {}, make("h4", {}, "Explanation, and what each sentence is worth"));
  if (typeof token.description !== "string") {
    section.append(make("p", { class: "empty" }, "Malformed, or cut off before its end: it counts as an orthogonal vector."));
    return section;
  }
  const sentences = token.sentences || [];
  if (!sentences.length) {
    section.append(make("p", { class: "plain" }, foreign(token.description)));
    return section;
  }
  const most = Math.max(0.25, ...sentences.map((sentence) => Math.abs(sentence.contribution)));
  section.append(make("ul", { class: "said" }, ...sentences.slice(0, 60).map((sentence) => {
    const bar = width(make("i", { class: sentence.contribution < 0 ? "minus" : null }), 100 * Math.abs(sentence.contribution) / most);
    return make("li", {}, make("div", { class: "words" }, foreign(part(token.description, sentence.start, sentence.end))),
      make("div", { class: "worth" }, make("div", { "aria-hidden": "true" }, bar), `${sentence.contribution > 0 ? "+" : ""}${fixed(sentence.contribution)}`));
  })));
  return section;
}

function confidence(token) {
  const samples = make("ol", { class: "samples" }, ...token.samples.map((sample) => make("li", {}, make("span", { class: "plain" },
    foreign(sample.description || "malformed")), make("span", { class: "note" }, ` error ${fixed(sample.relative_error)}`))));
  const section = make("section", {}, make("h4", {}, "Confidence: do samples agree?"),
    make("details", {}, make("summary", {}, `${fixed(token.agreement)} among ${token.samples.length} samples (1: all say the same)`), samples));
  return section;
}

function wrong(token, text) {
  const other = token.nearest_wrong;
  const source = text.results.find((candidate) => candidate.position === other.position);
  const nearer = other.relative_error <= token.relative_error;
  const section = make("section", {}, make("h4", {}, "Nearest wrong explanation, of ", source ? foreign(`“${source.token.trim()}”`, 60) : "a token", ` (token ${other.position}): error ${fixed(other.relative_error)}`));
  if (nearer) section.append(make("p", { class: "remark" }, "It is as near as the token’s own: the text says little about this token in particular."));
  if (source && source.description) section.append(make("p", { class: "plain wrong" }, foreign(source.description, 600)));
  return section;
}

function drawPanel() {
  const here = { text: state.text, index: state.active };
  const shown = state.kept.slice(0, 2);
  if (shown.length < 2 && !shown.some((ref) => same(ref, here))) shown.push(here);
  byId("panel").replaceChildren(...shown.map(card));
  byId("reading").classList.toggle("comparing", shown.length > 1);
}

/* --- choosing ----------------------------------------------------------------------------------------------------- */

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

/* --- search ------------------------------------------------------------------------------------------------------- */

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

/* --- figures ------------------------------------------------------------------------------------------------------ */

function drawFigures() {
  byId("tables").hidden = !extra.tables.length;
  byId("table-list").append(...extra.tables.map((table) => lazily(table.title, () => make("div", { class: "wide", tabindex: "0", role: "region", "aria-label": table.title },
    make("table", { class: "figures" }, make("thead", {}, make("tr", {}, ...table.columns.map((name) => name ? make("th", { scope: "col" }, foreign(name, 200)) : make("td", {})))),
      make("tbody", {}, ...table.rows.map((row) => make("tr", {}, make("th", { scope: "row" }, foreign(row[0], 300)), ...row.slice(1).map((cell) => make("td", {}, foreign(cell, 600)))))))))));
  byId("curves").hidden = !extra.curves.length;
  const stages = [...new Set(extra.curves.map((curve) => curve.stage))];
  byId("curve-list").append(...stages.map((stage, index) => lazily(`stage ${stage}`, () => make("div", { class: "curves" },
    ...extra.curves.filter((curve) => curve.stage === stage).map(figure)), index === stages.length - 1)));
}

/* A fold whose content is drawn when it is first opened. */
function lazily(title, content, open = false) {
  const element = make("details", {}, make("summary", {}, foreign(title, 200)));
  const fill = () => { if (element.open && element.children.length === 1) element.append(content()); };
  element.addEventListener("toggle", fill);
  element.open = open;
  return element;
}

function figure(curve) {
  const xs = curve.points.map((point) => point[0]), ys = curve.points.map((point) => point[1]);
  const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const x = (value) => 36 + 200 * (value - left) / (right - left || 1), y = (value) => 80 - 72 * (high > low ? (value - low) / (high - low) : 0.5);
  const draw = (name, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text) element.textContent = text;
    return element;
  };
  const short = (value) => String(Number(value.toPrecision(3)));
  const picture = draw("svg", { viewBox: "0 0 240 100", role: "img", "aria-label": `${curve.name}: from ${short(ys[0])} at step ${xs[0]} to ${short(ys[ys.length - 1])} at step ${xs[xs.length - 1]}` });
  picture.append(draw("line", { x1: 36, x2: 238, y1: 86, y2: 86 }), draw("line", { x1: 36, x2: 36, y1: 4, y2: 86 }),
    draw("path", { d: curve.points.map(([px, py], index) => `${index ? "L" : "M"}${x(px).toFixed(1)} ${y(py).toFixed(1)}`).join("") }),
    draw("text", { x: 32, y: 11, "text-anchor": "end" }, short(high)), draw("text", { x: 36, y: 97 }, `step ${left}`), draw("text", { x: 236, y: 97, "text-anchor": "end" }, String(right)));
  if (high > low) picture.append(draw("text", { x: 32, y: 83, "text-anchor": "end" }, short(low)));
  return make("figure", { class: "curve" }, make("figcaption", {}, foreign(curve.name, 120), make("span", { class: "note" }, ` ${short(ys[0])} → ${short(ys[ys.length - 1])}`)), picture);
}

/* --- start -------------------------------------------------------------------------------------------------------- */

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
})();
