/* The data, the state, and how a text of the data becomes nodes: as text, never as markup. */

const byId = (id) => document.getElementById(id);
const report = JSON.parse(byId("records").textContent);
const extra = JSON.parse(byId("extra").textContent);
const texts = report.texts;
const LONG = 3000, LONG_TOKEN = 120, ENDS = 8;
const state = { text: 0, active: 0, kept: [], needle: null, matches: [] };
let chips = [];

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
