"""Planning: is the word that will close a couplet in the explanations before the model has written it?

The model continues the first line of a couplet greedily. Explanations are asked for at the end of that first line, and
at each token of the second line before its last word. A hit is an explanation that holds the closing word itself.
Beside it: the closing words of other couplets in the same explanations (what such hits are worth by chance), and in
the model's own most probable next words at that place (what a plain look ahead of one token sees).

Where the closing word is named at the end of the first line, another rhyme is written in its place and the model is
steered by the edit: does the line then close with that word?
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table

from nla.evaluation.cells import cells
from nla.evaluation.subject import Subject
from nla.evaluation.suites.prompted import WORD, continued, prompt_set, shares, words
from nla.models.prompts import token_ids
from nla.models.steering import SteeredPrompts, edit_direction, random_direction, replaced
from nla.models.target import Target

NEXT = 20  # of the model's own most probable next tokens


@dataclass(frozen=True, slots=True)
class Couplet:
    """A first line and the second one as the model wrote it. `end`: tokens up to the first line's end;
    `closing`: tokens before the closing word."""

    prompt: str
    second: str
    word: str  # that closes the second line
    rhymed: bool
    tokens: list[int]
    end: int
    closing: int
    others: list[str]  # further words that would rhyme


def planning(
    subject: Subject, prompts: Mapping[str, Any] | None = None, max_new_tokens: int = 24
) -> dict[str, Any] | None:
    """`first_line` and `second_line`, each `named`, `by_chance`, `expected`: shares with interval and n, by couplet.

    `edited`: of the couplets whose closing word was named, `to_the_edit`, `changed`, `changed_at_random`: how often the
    steered line closes with the edited word, with another word than before, and so under a random direction.

    Args:
        prompts: a set like `nla/evaluation/prompts/couplets.json`, the default.
        max_new_tokens: of a second line.
    """
    prompts = prompts or prompt_set(subject, "couplets")
    written = [_write(subject.target, prompts["instruction"], item, max_new_tokens) for item in prompts["couplets"]]
    couplets = [couplet for couplet in written if couplet is not None]
    if len(couplets) < 2:
        return {"couplets": len(couplets), "reason": "the model finished fewer than two second lines", "flags": []}
    places = {
        "first_line": [(index, couplet.end - 1) for index, couplet in enumerate(couplets)],
        "second_line": [
            (index, place) for index, couplet in enumerate(couplets) for place in range(couplet.end, couplet.closing)
        ],
    }
    result: dict[str, Any] = {
        "couplets": len(couplets),
        "rhymed": sum(couplet.rhymed for couplet in couplets) / len(couplets),
    }
    texts = {name: _explained(subject, couplets, asked) for name, asked in places.items()}
    for name, asked in places.items():
        result[name] = _named(subject, couplets, asked, texts[name]) if asked else None
    result["edited"] = _edited(subject, couplets, texts["first_line"], max_new_tokens)
    result["examples"] = [f"{item.prompt.splitlines()[-1]} / {item.second}" for item in couplets[:5]]
    return result


def _write(target: Target, instruction: str, item: Mapping[str, Any], max_new_tokens: int) -> Couplet | None:
    """The couplet as the model continues it; None if it wrote no whole second line of at least two words."""
    prompt = f"{instruction}{item['line']}\n"
    tokens = token_ids(target.tokenizer, [prompt])[0]
    written = continued(target, tokens, max_new_tokens)
    text = str(target.tokenizer.decode(written, skip_special_tokens=True))
    second = text.split("\n")[0]
    found = list(WORD.finditer(second))
    if "\n" not in text or len(found) < 2:
        return None
    last = found[-1]
    others = [word for word in (*item.get("others", ()), *item["rhymes"]) if WORD.fullmatch(word)]
    closing = next(
        count
        for count in range(len(written) + 1)
        if len(str(target.tokenizer.decode(written[: count + 1], skip_special_tokens=True))) > last.start()
    )
    word = last.group().casefold()
    return Couplet(
        prompt=prompt,
        second=second,
        word=word,
        rhymed=word in item["rhymes"],
        tokens=tokens + written,
        end=len(tokens),
        closing=len(tokens) + closing,
        others=[other for other in others if other != word],
    )


def _explained(subject: Subject, couplets: Sequence[Couplet], asked: Sequence[tuple[int, int]]) -> list[str | None]:
    """The greedy explanation at each place: a couplet and one of its tokens."""
    if not asked:
        return []
    ids, settings = [couplets[index].tokens[: place + 1] for index, place in asked], subject.settings
    activation = subject.target.read_ids(ids, [[-1]] * len(ids)).activation
    found = subject.nla.explain(
        activation, temperature=0.0, max_new_tokens=settings.max_new_tokens, batch_size=settings.batch_size
    )
    return [row[0] for row in found]


def _named(
    subject: Subject, couplets: list[Couplet], asked: list[tuple[int, int]], texts: Sequence[str | None]
) -> dict[str, Any]:
    target = subject.target
    ids = [couplets[index].tokens[: place + 1] for index, place in asked]
    said = [words(text or "") for text in texts]
    expected = [_next_words(target, row) for row in ids]
    hits = []
    for (index, _), named, following in zip(asked, said, expected, strict=True):
        own = couplets[index].word
        others = [couplet.word for couplet in couplets if couplet.word != own]
        chance = sum(word in named for word in others) / max(1, len(others))
        hits.append([float(own in named), chance, float(own in following)])
    return shares(subject, hits, [index for index, _ in asked], ("named", "by_chance", "expected"))


def _edited(
    subject: Subject, couplets: list[Couplet], texts: Sequence[str | None], max_new_tokens: int
) -> dict[str, Any] | None:
    """What becomes of the closing word when the explanation at the first line's end names another one."""
    rows, hits = [], []
    for index, (couplet, text) in enumerate(zip(couplets, texts, strict=True)):
        if text is None or couplet.word not in words(text) or not couplet.others:
            continue
        named = next(word for word in WORD.findall(text) if word.casefold() == couplet.word)
        direction = edit_direction(subject.nla, [text], [replaced(text, named, couplet.others[0])])
        prompt = SteeredPrompts(subject.target, [couplet.tokens[: couplet.end]])
        closing = [
            _closing(prompt.continuations(vector, tokens=max_new_tokens, onward=True)[0])
            for vector in (direction, random_direction(direction, subject.seed))
        ]
        rows.append(index)
        hits.append([closing[0] == couplet.others[0], *(found not in (couplet.word, None) for found in closing)])
    if not rows:
        return None
    names = ("to_the_edit", "changed", "changed_at_random")
    return shares(subject, [[float(hit) for hit in row] for row in hits], rows, names)


def _closing(written: str) -> str | None:
    """The last word of the line that was written."""
    found = WORD.findall(written.split("\n")[0])
    return found[-1].casefold() if found else None


def _next_words(target: Target, tokens: list[int]) -> set[str]:
    """The model's most probable next tokens, as far as they begin a word."""
    clean = torch.full((1, target.d_model), torch.nan, device=target.device)
    logits = target.next_logits(torch.tensor(tokens, device=target.device), clean)[0][0]
    best = logits.topk(min(NEXT, len(logits))).indices.tolist()
    return {str(target.tokenizer.decode([token])).strip().casefold() for token in best}


def table(result: dict[str, Any]) -> Table:
    """How often the closing word is named before it is written."""
    shown = Table(title="Planning: the closing word of a couplet, before it is written", title_justify="left")
    for title in ("asked at", "n", "in the explanation", "95%", "another couplet's", "among the next 20 tokens"):
        shown.add_column(title, justify="left" if title == "asked at" else "right")
    if "reason" in result:
        shown.add_row(result["reason"])
        return shown
    for name, label in (("first_line", "the end of the first line"), ("second_line", "within the second line")):
        found = result[name]
        if found is not None:
            named = found["named"]
            others = (cells(found[key]["share"], None, "{:.2f}")[0] for key in ("by_chance", "expected"))
            shown.add_row(label, str(named["n"]), *cells(named["share"], named["ci95"], "{:.2f}"), *others)
    if result["edited"] is not None:
        figures = result["edited"]
        named = [cells(figure["share"], None, "{:.2f}")[0] for figure in figures.values()]
        shown.add_row("edited to another rhyme", str(figures["changed"]["n"]), f"closes so: {named[0]}", "",
                      f"otherwise: {named[1]}", f"at random: {named[2]}")  # fmt: skip
    shown.caption = f"{result['couplets']} couplets; {result['rhymed']:.0%} of the model's second lines rhyme"
    return shown
