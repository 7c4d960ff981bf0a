"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const LONGEST_TOKEN = 160, LONGEST_TEXT = 4000;
  const $ = (id) => document.getElementById(id);
  const state = { text: 0, current: 0, pinned: null, matches: [] };

  /* What would move the cursor, turn the writing direction or end a line is shown, not done. */
  const NAMES = { "\u061c": "ALM", "\u200e": "LRM", "\u200f": "RLM", "\u202a": "LRE", "\u202b": "RLE", "\u202c": "PDF",
    "\u202d": "LRO", "\u202e": "RLO", "\u2066": "LRI", "\u2067": "RLI", "\u2068": "FSI", "\u2069": "PDI",
    "\u2028": "LS", "\u2029": "PS", "\ufeff": "BOM" };
  const visible = (text, longest) => {
    const shown = String(text).slice(0, longest).replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g,
      (sign) => sign < "\u0020" ? String.fromCharCode(0x2400 + sign.charCodeAt(0)) : `⟦${NAMES[sign] || "U+" + sign.charCodeAt(0).toString(16)}⟧`);
    return text.length > longest ? `${shown}… (${text.length - longest} more characters)` : shown;
  };
  const chipText = (token) => visible(token.replace(/\n/g, "⏎\n"), LONGEST_TOKEN) || "·";
  const number = (value, digits = 3) => value === null || value === undefined ? "–" : Number(value).toFixed(digits);

  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "class") node.className = value; else node.setAttribute(name, value);
    }
    for (const child of children) node.append(child instanceof Node ? child : document.createTextNode(child));
    return node;
  };
  const grid = (cells) => make("div", { class: "bars" }, ...cells.map((cell) => cell instanceof Node ? cell : make("span", {}, cell)));
  const isolated = (text, longest = LONGEST_TEXT) => make("bdi", {}, visible(text, longest));
  const tokens = () => data.texts.length ? data.texts[state.text].results : [];
  const chip = (index) => $("tokens").children[index];

  /* header */
  const header = () => {
    $("title").textContent = `${data.model}, layer ${data.layer_index}: what its activations say`;
    const facts = [["pair", data.pair], ["stage", data.stage], ["commit", data.commit], ["nla", data.nla_version], ["made", data.created]];
    for (const [name, value] of facts) if (value) $("facts").append(make("li", {}, make("small", {}, `${name} `), isolated(value)));
    for (const [index, name] of (data.pages || []).entries()) {
      $("pages").append(name === data.page ? make("strong", {}, `page ${index + 1} `) : make("a", { href: name }, `page ${index + 1}`), " ");
    }
  };

  /* the text */
  const showText = () => {
    const box = $("tokens"), parts = document.createDocumentFragment();
    box.replaceChildren();
    tokens().forEach((token, index) => {
      const node = make("span", { class: token.description === null ? "chip bad" : "chip", role: "option", id: `t${index}`,
        "aria-selected": "false", "aria-label": `${visible(token.token, 60)}, error ${number(token.relative_error, 2)}` }, chipText(token.token));
      node.style.setProperty("--e", String(Math.max(0, token.relative_error)));
      parts.append(node);
    });
    box.append(parts);
    const record = data.texts[state.text];
    $("count").textContent = record ? `${tokens().length} tokens, FVE ${number(record.fve)} about the mean of this text.` : "";
    const order = tokens().map((_, index) => index).sort((a, b) => tokens()[a].relative_error - tokens()[b].relative_error);
    list("best", order.slice(0, 5));
    list("worst", order.slice(-5).reverse());
  };
  const list = (id, indices) => {
    $(id).replaceChildren(...indices.map((index) => {
      const token = tokens()[index];
      const button = make("button", { type: "button", "data-token": String(index) }, make("small", {}, `${number(token.relative_error, 2)} `),
        make("strong", {}, isolated(chipText(token.token).trim() || "␣", 40)), " ", isolated(token.description === null ? "(malformed)" : token.description, 90));
      return make("li", {}, button);
    }));
  };

  const bar = (share, own) => {
    const track = make("div", { class: "track", "aria-hidden": "true" }), fill = make("div", { class: own ? "bar own" : "bar" });
    fill.style.left = "0"; fill.style.width = `${100 * Math.max(0, Math.min(1, share))}%`;
    track.append(fill);
    return track;
  };
  const details = (index, title) => {
    const token = tokens()[index], parts = [];
    parts.push(make("h2", {}, `${title}: `, isolated(chipText(token.token).trim() || "␣", 60)), make("p", { class: "soft" }, `position ${token.position}, norm ${number(token.l2_norm, 1)}`));
    parts.push(make("p", { class: "said" }, isolated(token.description === null ? "(malformed)" : token.description)));
    const figures = ["error", bar(token.relative_error), number(token.relative_error, 2), "cosine", bar(token.cosine_similarity, true), number(token.cosine_similarity, 2)];
    if (token.confidence !== null) figures.push("confidence", bar(token.confidence, true), number(token.confidence, 2));
    parts.push(grid(figures));
    if (token.remark) parts.push(make("p", { class: "no" }, isolated(token.remark)));
    if (token.sentences.length > 1) {
      const most = Math.max(...token.sentences.map((item) => Math.abs(item.contribution)), 1e-9);
      parts.push(make("h3", {}, "What each sentence adds"));
      parts.push(grid(token.sentences.flatMap((item) => [isolated(item.text, 400), bar(item.contribution / most, true), number(item.contribution, 2)])));
    }
    if (token.next_words.length) {
      parts.push(make("h3", {}, "The model itself expects"));
      parts.push(grid(token.next_words.flatMap(([word, probability]) => [isolated(word, 40), bar(probability, true), number(probability, 2)])));
    }
    if (token.rival) {
      parts.push(make("h3", {}, "The nearest wrong explanation"), make("p", {}, isolated(token.rival.description, 600)),
        make("p", { class: "soft" }, `of position ${token.rival.position}, error ${number(token.rival.relative_error, 2)} here`));
    }
    if (token.samples.length) {
      parts.push(make("h3", {}, "Samples"), make("ul", {}, ...token.samples.map((text) => make("li", {}, isolated(text === null ? "(malformed)" : text, 600)))));
    }
    return parts;
  };
  const select = (index, scroll = true, remember = true) => {
    if (!tokens().length) return;
    const old = chip(state.current);
    if (old) { old.classList.remove("current"); old.setAttribute("aria-selected", "false"); }
    state.current = Math.max(0, Math.min(tokens().length - 1, index));
    const node = chip(state.current);
    node.classList.add("current"); node.setAttribute("aria-selected", "true");
    $("tokens").setAttribute("aria-activedescendant", node.id);
    $("current").replaceChildren(...details(state.current, "Token"));
    if (scroll) node.scrollIntoView({ block: "nearest" });
    if (remember) history.replaceState(null, "", `#text=${state.text}&token=${tokens()[state.current].position}`);
  };
  const pin = (index) => {
    if (state.pinned !== null && chip(state.pinned)) chip(state.pinned).classList.remove("pinned");
    state.pinned = state.pinned === index ? null : index;
    $("pinned").hidden = state.pinned === null;
    if (state.pinned === null) return;
    chip(state.pinned).classList.add("pinned");
    $("pinned").replaceChildren(...details(state.pinned, "Kept"));
  };

  /* search */
  const search = (query) => {
    for (const index of state.matches) chip(index).classList.remove("found");
    const wanted = query.trim().toLowerCase();
    state.matches = wanted === "" ? [] : tokens().flatMap((token, index) =>
      `${token.token}\n${token.description || ""}`.toLowerCase().includes(wanted) ? [index] : []);
    for (const index of state.matches) chip(index).classList.add("found");
    const record = data.texts[state.text];
    $("count").textContent = wanted === "" ? `${tokens().length} tokens, FVE ${number(record.fve)} about the mean of this text.` : `${state.matches.length} of ${tokens().length} tokens match.`;
  };
  const nextMatch = () => {
    if (state.matches.length) select(state.matches.find((index) => index > state.current) ?? state.matches[0]);
  };

  const choose = (text, position = null) => {
    state.text = text; state.current = 0; state.pinned = null; state.matches = [];
    $("pinned").hidden = true; $("text").value = String(text);
    showText();
    const found = position === null ? -1 : tokens().findIndex((token) => token.position === position);
    select(found >= 0 ? found : Math.max(0, tokens().length - 1), found >= 0, found >= 0);
  };

  /* the evaluation */
  const controls = (figures) => {
    const rows = [["this pair", figures.fve, figures.fve_ci95, true]];
    if (figures.fve_warm_start !== null && figures.fve_warm_start !== undefined) rows.push(["warm start", figures.fve_warm_start, figures.fve_warm_start_ci95]);
    for (const [name, item] of Object.entries(figures.controls || {})) if (item.fve !== null) rows.push([name.replaceAll("_", " "), item.fve, item.ci95]);
    const low = Math.min(0, ...rows.map((row) => (row[2] || [row[1]])[0])), high = Math.max(1, ...rows.map((row) => row[1]));
    const place = (value) => 100 * (value - low) / (high - low);
    for (const [name, value, interval, own] of rows) {
      const track = make("div", { class: "track", "aria-hidden": "true" }), fill = make("div", { class: own ? "bar own" : "bar" }), zero = make("div", { class: "zero" });
      fill.style.left = `${Math.min(place(0), place(value))}%`; fill.style.width = `${Math.abs(place(value) - place(0))}%`;
      zero.style.left = `${place(0)}%`;
      track.append(fill, zero);
      if (interval) {
        const whisker = make("div", { class: "whisker" });
        whisker.style.left = `${place(interval[0])}%`; whisker.style.width = `${place(interval[1]) - place(interval[0])}%`;
        track.append(whisker);
      }
      $("controls").append(make("span", {}, name), track, make("span", {}, interval ? `${number(value)} (${number(interval[0])} to ${number(interval[1])})` : number(value)));
    }
  };
  const isNumber = (value) => typeof value === "number";
  const isInterval = (value) => Array.isArray(value) && value.length === 2 && value.every(isNumber);
  const flat = (value, path, rows) => {
    if (value === null || typeof value !== "object") { rows.push([path, isNumber(value) ? (Number.isInteger(value) ? String(value) : number(value)) : String(value ?? "–"), ""]); return; }
    if (Array.isArray(value)) {
      if (value.every((item) => item === null || typeof item !== "object")) rows.push([path, value.map((item) => isNumber(item) && !Number.isInteger(item) ? number(item) : String(item)).join(", "), ""]);
      else value.forEach((item, index) => flat(item, `${path} ${index + 1}`, rows));
      return;
    }
    for (const [key, item] of Object.entries(value)) {
      if (key.endsWith("ci95")) continue;
      const interval = value[`${key}_ci95`] ?? (["fve", "value", "share", "rank1"].includes(key) ? value.ci95 : undefined);
      const name = `${path} ${key.replaceAll("_", " ")}`.trim();
      if (isNumber(item) && isInterval(interval)) rows.push([name, number(item), `${number(interval[0])} to ${number(interval[1])}`]);
      else flat(item, name, rows);
    }
  };
  const evaluation = (figures) => {
    $("evaluation").hidden = false;
    for (const [proven, text] of data.verdicts || []) $("verdicts").append(make("p", {}, make("strong", { class: proven ? "yes" : "no" }, proven ? "yes  " : "no  "), isolated(text)));
    controls(figures);
    for (const [name, value] of Object.entries(figures)) {
      if (value === null || typeof value !== "object" || Array.isArray(value)) continue;
      const rows = [];
      flat(value, "", rows);
      const body = make("tbody", {}, ...rows.map(([key, shown, interval]) => make("tr", {}, make("td", {}, isolated(key, 200)), make("td", { class: "number" }, isolated(shown, 200)), make("td", { class: "number" }, interval))));
      const head = make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "figure"), make("th", { scope: "col" }, "value"), make("th", { scope: "col" }, "95 %")));
      $("suites").append(make("details", {}, make("summary", {}, name.replaceAll("_", " ")), make("table", {}, head, body)));
    }
  };
  const SVG = "http://www.w3.org/2000/svg";
  const plot = (title, points) => {
    const width = 280, height = 130, left = 44, bottom = 20;
    const xs = points.map((point) => point[0]), ys = points.map((point) => point[1]);
    const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const x = (value) => left + (width - left - 8) * (x1 > x0 ? (value - x0) / (x1 - x0) : .5);
    const y = (value) => height - bottom - (height - bottom - 8) * (y1 > y0 ? (value - y0) / (y1 - y0) : .5);
    const svg = document.createElementNS(SVG, "svg");
    const draw = (tag, attributes, text) => {
      const node = document.createElementNS(SVG, tag);
      for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
      if (text) node.textContent = text;
      svg.append(node);
    };
    for (const [name, value] of Object.entries({ viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}: from ${number(ys[0])} to ${number(ys[ys.length - 1])}` })) svg.setAttribute(name, value);
    draw("polyline", { points: points.map((point) => `${x(point[0])},${y(point[1])}`).join(" "), fill: "none", stroke: "var(--accent)", "stroke-width": 2 });
    for (const [value, anchor] of [[y0, y(y0)], [y1, y(y1)]]) draw("text", { x: left - 4, y: anchor + 4, "text-anchor": "end", "font-size": 11, fill: "currentColor" }, number(value, 2));
    draw("text", { x: left, y: height - 4, "font-size": 11, fill: "currentColor" }, `step ${x0}`);
    draw("text", { x: width - 4, y: height - 4, "text-anchor": "end", "font-size": 11, fill: "currentColor" }, String(x1));
    return make("figure", {}, make("figcaption", {}, isolated(title, 80)), svg);
  };
  const training = (curves) => {
    for (const [title, points] of curves) if (points.length > 1) { $("training").hidden = false; $("plots").append(plot(title, points)); }
  };

  /* what a person does */
  const indexOf = (target) => target.classList && target.classList.contains("chip") ? Number(target.id.slice(1)) : null;
  $("tokens").addEventListener("mouseover", (event) => { const index = indexOf(event.target); if (index !== null) select(index, false); });
  $("tokens").addEventListener("click", (event) => { const index = indexOf(event.target); if (index !== null) { select(index, false); pin(index); } });
  $("tokens").addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 12, ArrowUp: -12, PageDown: 60, PageUp: -60 };
    if (event.key in steps) select(state.current + steps[event.key]);
    else if (event.key === "Home") select(0);
    else if (event.key === "End") select(tokens().length - 1);
    else if (event.key === "Enter" || event.key === " ") pin(state.current);
    else return;
    event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && state.pinned !== null) pin(state.pinned);
    if (event.key === "/" && document.activeElement !== $("search")) { $("search").focus(); event.preventDefault(); }
  });
  for (const id of ["best", "worst"]) $(id).addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) { select(Number(button.dataset.token)); $("tokens").focus(); }
  });
  $("search").addEventListener("input", (event) => search(event.target.value));
  $("search").addEventListener("keydown", (event) => { if (event.key === "Enter") nextMatch(); });
  $("text").addEventListener("change", (event) => choose(Number(event.target.value)));
  const theme = (name) => document.documentElement.setAttribute("data-theme", name);
  theme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  $("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));

  header();
  data.texts.forEach((record, index) => $("text").append(make("option", { value: String(index) }, `${index + 1}: ${visible(record.text.slice(0, 50), 50)}`)));
  $("which").hidden = data.texts.length < 2;
  const asked = new URLSearchParams(location.hash.slice(1));
  const wanted = Number(asked.get("text") || 0);
  if (data.texts.length) choose(wanted < data.texts.length ? wanted : 0, asked.has("token") ? Number(asked.get("token")) : null);
  if (data.metrics) evaluation(data.metrics);
  training(data.curves || []);
})();
