/* Facts and bars at the top, tables and curves at the bottom. */

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
    ? "FVE: fraction of variance explained on held-out documents, with 95 % intervals by document. The grey rows know nothing of the activation or need no verbalizer: a pair has to be above each."
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
