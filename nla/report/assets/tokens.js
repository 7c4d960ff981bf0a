/* The text as chips, and the panel of the chosen tokens. */

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
    const classes = ["t", bad && "bad", look.blank && "sign", look.shown.length > 24 && "long", token.description === undefined || token.description === null ? "malformed" : ""];
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
  const beside = state.kept.length && shown.length < 2 ? make("p", { class: "card token empty" }, "Choose another token to see it beside this one.") : null;
  byId("panel").replaceChildren(...shown.map(card), ...(beside ? [beside] : []));
  byId("reading").classList.toggle("comparing", state.kept.length > 0);  // not by what is shown: the text would move under the mouse
}
