"""Does the explanation know what comes next? Beside lenses, which read it from the activation without training.

The word that the target itself finds most probable after the context is looked for among the first k words that each
method offers, most probable first.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from rich import box
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nla.core.objectives import normalize
from nla.data.teachers.expectations import CANDIDATES, TokenWords
from nla.data.teachers.target_claims import EXPECTED, UNPARSED, parse_description
from nla.errors import DataError
from nla.evaluation.bootstrap import Resamples
from nla.evaluation.cells import cells
from nla.evaluation.lenses import TunedLens, fit_tuned_lens, lens_logits
from nla.evaluation.ranks import shared
from nla.evaluation.subject import Subject
from nla.evaluation.suites.controls import TRAINING_SPLITS, other_document
from nla.evaluation.token_types import leading
from nla.models.backbone import body, head_logits
from nla.models.explanations import QUOTED

METHODS = {
    "explanation": "the explanation",
    "warm_start": "the warm start's explanation",
    "reconstruction": "reconstruction, tuned lens",
    "tuned_lens": "activation, tuned lens",
    "logit_lens": "activation, logit lens",
    "last_tokens": "the model, last 8 tokens",
    "other_document": "the model, other document",
}
LENSES = ("tuned_lens", "logit_lens")
READ_FROM_TEXTS = ("explanation", "warm_start", "reconstruction")
AT = (1, 5, 20)  # words offered
LAST_TOKENS = 8
AT_ONCE = 32  # rows whose logits are held
MARKS = "\"“”«»`'‘’ "  # of a quotation


def next_words(subject: Subject, documents: int | None = None) -> dict[str, Any]:
    """By method `hit@1`, `hit@5`, `hit@20`; `n` rows; `lens`: what the tuned lens was fitted to.

    Args:
        documents: training documents that the tuned lens is fitted to; None: `evaluation.neighbour_documents`.
    """
    rows, target = subject.rows, subject.target
    words = TokenWords(target.tokenizer)
    expected = _ranked(subject, words, rows.tokens)
    asked = torch.tensor([bool(found) for found in expected])
    if not bool(asked.any()):
        return {"n": 0, "methods": {}, "flags": [], "reason": "the target's most probable tokens are no words"}
    lens = _lens(subject, subject.settings.neighbour_documents if documents is None else documents)
    offered = _offered(subject, words, lens)
    partner = other_document(rows.document, subject.seed)
    if partner is not None:
        offered["other_document"] = [expected[index] for index in partner]
    hits = {name: _hits(expected, found) for name, found in offered.items()}
    chance = {} if partner is None else {n: _hits(expected, [f[i] for i in partner]) for n, f in offered.items()}
    result: dict[str, Any] = {"n": int(asked.sum()), "methods": {}, "flags": []}
    for name, found in offered.items():
        figures: dict[str, Any] = {
            f"hit@{k}": {
                **_share(hits[name][:, column], asked, subject.resamples),
                "chance": _share(chance[name][:, column], asked, subject.resamples)["value"] if chance else None,
            }
            for column, k in enumerate(AT)
        }
        figures["words"] = sum(len(given[: AT[-1]]) for given in found) / len(found)
        for rival in LENSES:
            if name in READ_FROM_TEXTS and rival in hits:
                ahead = _share(hits[name][:, 0] - hits[rival][:, 0], asked, subject.resamples)
                figures[f"above_{rival}"] = ahead
                if name == "explanation" and ahead["ci95"] is not None and ahead["ci95"][1] < 0:
                    lead = f"{-ahead['value']:.2f} more of the next words at hit@1"
                    result["flags"].append(f"the {METHODS[rival]}, knows {lead} than the explanation states")
        result["methods"][name] = figures
    if "explanation" not in offered:
        result["reason"] = "no explanation says which words come next"
    known = isinstance(lens, TunedLens)
    result["lens"] = {"rows": lens.rows, "error": lens.error} if known else {"rows": 0, "reason": str(lens)}
    return result


def _offered(subject: Subject, words: TokenWords, lens: TunedLens | str) -> dict[str, list[list[str]]]:
    """The words that each method offers at each row, best first."""
    rows, offered = subject.rows, dict[str, list[list[str]]]()
    texts = subject.greedy.texts.explanation
    for name, variant in (("explanation", "greedy"), ("warm_start", "warm_start")):
        if variant in subject.variants:
            stated = [stated_words(text) for text in subject.variants[variant].texts.explanation]
            if any(stated):
                offered[name] = stated
    if isinstance(lens, TunedLens):
        length = rows.activation.norm(dim=1, keepdim=True)
        read = _read_by(subject, words, lens(normalize(subject.greedy.prediction, 1.0) * length))
        offered["reconstruction"] = [[] if text is None else found for text, found in zip(texts, read, strict=True)]
        offered["tuned_lens"] = _read_by(subject, words, lens(rows.activation))
    offered["logit_lens"] = _read_by(subject, words, rows.activation)
    endings = [ending(subject.target.tokenizer, row) for row in rows.tokens]
    offered["last_tokens"] = _ranked(subject, words, endings)
    return offered


def ending(tokenizer: PreTrainedTokenizerBase, row: list[int]) -> list[int]:
    """The last tokens, after those that the tokenizer puts before every text: without a BOS many models read badly."""
    start = leading(tokenizer, row)
    return [*start, *row[max(len(start), len(row) - LAST_TOKENS) :]]


def stated_words(text: str | None) -> list[str]:
    """The words that a text expects next, in its order.

    Of a text in the words of `teacher=self` those of its line about what comes next, of another one all that it quotes.
    """
    if text is None:
        return []
    claims = parse_description(text)
    if any(kind != UNPARSED for kind, _ in claims):
        return [value for kind, value in claims if kind == EXPECTED]
    quoted = [word for found in QUOTED.finditer(text) for word in found.group().strip(MARKS).split()]
    return list(dict.fromkeys(word.rstrip(".,;:!?") or word for word in quoted))


def _hits(expected: list[list[str]], offered: list[list[str]]) -> Float[Tensor, "batch k"]:
    """Whether the first expected word is among the first k offered."""
    pairs = list(zip(expected, offered, strict=True))
    return torch.tensor([[float(bool(truth) and truth[0] in given[:k]) for k in AT] for truth, given in pairs])


def _share(hits: Float[Tensor, " batch"], asked: Bool[Tensor, " batch"], resamples: Resamples) -> dict[str, Any]:
    return resamples.ratio(hits * asked, asked)


def _lens(subject: Subject, documents: int) -> TunedLens | str:
    if documents == 0:
        return "switched off by neighbour_documents=0"
    reason = "no training documents"
    for split in TRAINING_SPLITS:
        try:
            return fit_tuned_lens(subject.target, subject.data, split, documents)
        except DataError as error:
            reason = str(error)
    return reason


def _ranked(subject: Subject, words: TokenWords, tokens: list[list[int]]) -> list[list[str]]:
    """The words that the target finds most probable after each row of tokens; rows of one length together."""
    target = subject.target
    rows_of: dict[int, list[int]] = {}
    for index, row in enumerate(tokens):
        rows_of.setdefault(len(row), []).append(index)
    batches = [rows[first : first + AT_ONCE] for rows in rows_of.values() for first in range(0, len(rows), AT_ONCE)]

    @torch.no_grad()
    def batch(chosen: list[int]) -> list[list[str]]:
        given = torch.tensor([tokens[index] for index in chosen], device=target.device)
        hidden = body(target.model)(input_ids=given, use_cache=False).last_hidden_state[:, -1]
        return _best(words, head_logits(target.model, hidden))

    found = shared(batches, batch)
    best = {index: row for chosen, rows in zip(batches, found, strict=True) for index, row in zip(chosen, rows)}
    return [best[index] for index in range(len(tokens))]


def _read_by(subject: Subject, words: TokenWords, states: Float[Tensor, "batch d_model"]) -> list[list[str]]:
    found = shared(states.split(AT_ONCE), lambda part: _best(words, lens_logits(subject.target, part)))
    return [row for part in found for row in part]


def _best(words: TokenWords, logits: Float[Tensor, "batch vocab"]) -> list[list[str]]:
    probabilities, candidates = logits.softmax(-1).topk(min(CANDIDATES, logits.shape[-1]))
    pairs = zip(candidates.tolist(), probabilities.tolist(), strict=True)
    return [[word for word, _ in words.most_probable(*pair)] for pair in pairs]


def table(result: dict[str, Any]) -> Table:
    """hit@k of each method, the first with its interval."""
    title = f"The next word: the model's most probable one among the first k offered, {result['n']} rows"
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.add_column("words offered by", no_wrap=True)
    for heading in ("words", "hit@1", "95%", "chance", *(f"hit@{k}" for k in AT[1:])):
        shown.add_column(heading, justify="right", no_wrap=True)
    for name, label in METHODS.items():
        if name in result["methods"]:
            method = result["methods"][name]
            first, *others = (method[f"hit@{k}"] for k in AT)
            value, interval = cells(first["value"], first["ci95"], "{:.2f}")
            plain = [cells(figure, None, "{:.2f}")[0] for figure in (first["chance"], *(f["value"] for f in others))]
            shown.add_row(label, f"{method['words']:.1f}", value, interval.replace(" to ", "–"), *plain)
    return shown
