"""Does the explanation know what comes next? Beside lenses, which read it from the activation without training.

The word that the target itself finds most probable after the context is looked for among the first k words that each
method offers, most probable first.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from rich.table import Table
from torch import Tensor

from nla.data.teachers.expectations import CANDIDATES, TokenWords
from nla.data.teachers.target_claims import EXPECTED, parse_description
from nla.errors import DataError
from nla.evaluation.cells import cells
from nla.evaluation.lenses import TunedLens, fit_tuned_lens, lens_logits
from nla.evaluation.ranks import shared
from nla.evaluation.subject import Subject
from nla.evaluation.suites.controls import TRAINING_SPLITS, other_document
from nla.models.backbone import body, head_logits

METHODS = {
    "explanation": "words that the explanation expects",
    "warm_start": "words that the warm start's explanation expects",
    "reconstruction": "the reconstruction through the tuned lens",
    "tuned_lens": "the activation through the tuned lens",
    "logit_lens": "the activation through the logit lens",
    "last_tokens": "the model on the last 8 tokens alone",
    "other_document": "what the model expects in another document",
}
AT = (1, 5, 20)  # words offered
LAST_TOKENS = 8
AT_ONCE = 32  # rows whose logits are held


def next_words(subject: Subject, documents: int | None = None) -> dict[str, Any]:
    """By method `hit@1`, `hit@5`, `hit@20`, each `{value, ci95}`; `n` rows; `lens`: what the tuned lens was fitted to.

    Args:
        documents: training documents that the tuned lens is fitted to; None: `evaluation.neighbour_documents`.
    """
    rows, target = subject.rows, subject.target
    words = TokenWords(target.tokenizer)
    expected = _ranked(subject, words, rows.tokens)
    offered: dict[str, list[list[str]]] = {}
    for name, variant in (("explanation", "greedy"), ("warm_start", "warm_start")):
        if variant in subject.variants:
            stated = [_stated(text) for text in subject.variants[variant].texts.explanation]
            if any(stated):
                offered[name] = stated
    lens = _lens(subject, documents or subject.settings.neighbour_documents)
    if isinstance(lens, TunedLens):
        offered["reconstruction"] = _read_by(subject, words, lens(subject.greedy.prediction))
        offered["tuned_lens"] = _read_by(subject, words, lens(rows.activation))
    offered["logit_lens"] = _read_by(subject, words, rows.activation)
    offered["last_tokens"] = _ranked(subject, words, [row[-LAST_TOKENS:] for row in rows.tokens])
    partner = other_document(rows.document, subject.seed)
    if partner is not None:
        offered["other_document"] = [expected[index] for index in partner]
    asked = torch.tensor([bool(found) for found in expected])
    result: dict[str, Any] = {"n": int(asked.sum()), "methods": {}}
    for name, found in offered.items():
        hits = torch.tensor([[_hit(truth, given, k) for k in AT] for truth, given in zip(expected, found, strict=True)])
        total, resampled = subject.resamples.sums(torch.cat([hits * asked.unsqueeze(1), asked.unsqueeze(1)], 1))
        result["methods"][name] = {
            f"hit@{k}": {
                "value": float(total[column] / total[-1]),
                "ci95": subject.resamples.interval(resampled[:, column] / resampled[:, -1]),
            }
            for column, k in enumerate(AT)
        }
    if "explanation" not in offered:
        result["reason"] = "no explanation says which words come next"
    known = isinstance(lens, TunedLens)
    result["lens"] = {"rows": lens.rows, "error": lens.error} if known else {"rows": 0, "reason": str(lens)}
    return result


def _hit(expected: Sequence[str], offered: Sequence[str], k: int) -> float:
    return float(bool(expected) and expected[0] in offered[:k])


def _stated(text: str | None) -> list[str]:
    """The expected words of a text in the words of `teacher=self`, in their order."""
    return [value for kind, value in parse_description(text or "") if kind == EXPECTED]


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
    """The words that the target finds most probable after each row of tokens."""
    target = subject.target

    @torch.no_grad()
    def row(index: int) -> list[str]:
        given = torch.tensor([tokens[index]], device=target.device)
        hidden = body(target.model)(input_ids=given, use_cache=False).last_hidden_state[0, -1:]
        return _best(words, head_logits(target.model, hidden))[0]

    return shared(range(len(tokens)), row)


def _read_by(subject: Subject, words: TokenWords, states: Float[Tensor, "batch d_model"]) -> list[list[str]]:
    found = shared(states.split(AT_ONCE), lambda part: _best(words, lens_logits(subject.target, part)))
    return [row for part in found for row in part]


def _best(words: TokenWords, logits: Float[Tensor, "batch vocab"]) -> list[list[str]]:
    probabilities, candidates = logits.softmax(-1).topk(min(CANDIDATES, logits.shape[-1]))
    pairs = zip(candidates.tolist(), probabilities.tolist(), strict=True)
    return [[word for word, _ in words.most_probable(*pair)] for pair in pairs]


def table(result: dict[str, Any]) -> Table:
    """hit@k of each method."""
    shown = Table(title="The next word: the model's most probable one among the first k offered", title_justify="left")
    shown.add_column("offered by")
    for k in AT:
        shown.add_column(f"hit@{k}", justify="right")
        shown.add_column("95%", justify="right")
    for name, label in METHODS.items():
        if name in result["methods"]:
            figures = result["methods"][name].values()
            shown.add_row(label, *(text for f in figures for text in cells(f["value"], f["ci95"], "{:.2f}")))
    return shown
