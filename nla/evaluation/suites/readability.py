"""Are the explanations language? Figures of the texts alone, which nothing in the method asks for."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from rich.table import Table
from torch import Tensor

from nla.evaluation.bootstrap import Resamples
from nla.evaluation.cells import cells
from nla.evaluation.explanations import repeated_share
from nla.evaluation.ranks import shared
from nla.evaluation.subject import Subject
from nla.evaluation.suites.claims import FullDescription
from nla.models.explanations import sentences

WORD = re.compile(r"[^\W\d_]+")
FIGURES = {  # numerator and denominator of each text, in the order of the table
    "nats_per_token": "nats per token, under the target",
    "words_per_sentence": "words per sentence",
    "unknown_words": "share of words that the corpus does not have",
    "repeated_words": "share of words said before in the same text",
}


def readability(subject: Subject) -> dict[str, Any]:
    """`explanations`, `warm_start` and, where the source has them, `given`: each figure `{value, ci95}`; `change`.

    A judge's rating is another suite, `judged`.
    """
    source, rows = subject.data.source, subject.rows
    vocabulary = {word for document in source.documents("test") for word in _words(document.text)}
    texts = {
        name: subject.variants[variant].texts.explanation
        for name, variant in (("explanations", "greedy"), ("warm_start", "warm_start"))
        if variant in subject.variants
    }
    given = _given(subject)
    if given is not None:
        texts["given"] = given
    counts = {name: _counts(subject, found, vocabulary | _said(given)) for name, found in texts.items()}
    result: dict[str, Any] = {name: _shares(count, subject.resamples) for name, count in counts.items()}
    for name, found in texts.items():
        result[name]["repeated_sentences"] = repeated_share([text for text in found if text])
    if "warm_start" in counts:
        result["change"] = _change(counts["explanations"], counts["warm_start"], subject.resamples)
    result["n"] = len(rows)
    return result


def _given(subject: Subject) -> list[str | None] | None:
    """The source's own warm-start texts about the same contexts, if it is one that knows the facts."""
    source, rows = subject.data.source, subject.rows
    if not isinstance(source, FullDescription):
        return None
    documents = {document.id: document for document in source.documents("test")}
    found = [
        source.explanation(documents[name], len(text), subject.seed)
        for name, text in zip(rows.document_id, rows.text, strict=True)
    ]
    return found if any(found) else None


def _said(texts: Sequence[str | None] | None) -> set[str]:
    """Words that the teacher uses are known, in the corpus or not."""
    return {word for text in texts or () for word in _words(text or "")}


def _words(text: str) -> list[str]:
    return [word.casefold() for word in WORD.findall(text)]


def _counts(subject: Subject, texts: Sequence[str | None], vocabulary: set[str]) -> Float[Tensor, "batch figure 2"]:
    """Numerator and denominator of each figure, for each text; a malformed one counts nowhere."""
    nats = _nats(subject, texts)
    rows = []
    for text, (total, tokens) in zip(texts, nats, strict=True):
        words = _words(text or "")
        unknown = sum(word not in vocabulary for word in words)
        repeated = len(words) - len(set(words))
        parts = len(sentences(text or ""))
        rows.append([[total, tokens], [len(words), parts], [unknown, len(words)], [repeated, len(words)]])
    return torch.tensor(rows, dtype=torch.float64)


def _nats(subject: Subject, texts: Sequence[str | None]) -> list[tuple[float, int]]:
    """Surprisal of each text under the frozen target, alone, and the number of tokens that it predicted."""
    different = list(dict.fromkeys(text for text in texts if text))
    nats = shared(different, lambda text: subject.target.surprisal([text])[0])
    found = dict(zip(different, nats, strict=True))
    return [found[text] if text else (0.0, 0) for text in texts]


def _shares(counts: Float[Tensor, "batch figure 2"], resamples: Resamples) -> dict[str, Any]:
    total, resampled = resamples.sums(counts)
    return {name: _value(total[k], resampled[:, k], resamples) for k, name in enumerate(FIGURES)}


def _value(total: Tensor, resampled: Tensor, resamples: Resamples) -> dict[str, Any]:
    if float(total[1]) == 0:
        return {"value": None, "ci95": None}
    return {"value": float(total[0] / total[1]), "ci95": resamples.interval(resampled[:, 0] / resampled[:, 1])}


def _change(after: Tensor, before: Tensor, resamples: Resamples) -> dict[str, Any]:
    """After minus before, paired within each resample."""
    (mine, mine_resampled), (theirs, theirs_resampled) = resamples.sums(after), resamples.sums(before)
    found = {}
    for k, name in enumerate(FIGURES):
        value = mine[k, 0] / mine[k, 1] - theirs[k, 0] / theirs[k, 1]
        resampled = mine_resampled[:, k, 0] / mine_resampled[:, k, 1]
        resampled = resampled - theirs_resampled[:, k, 0] / theirs_resampled[:, k, 1]
        known = bool(value.isfinite())
        found[name] = {"value": float(value) if known else None, "ci95": resamples.interval(resampled)}
    return found


def table(result: dict[str, Any]) -> Table:
    """Each figure for each kind of text, and the change."""
    shown = Table(title="Readability of the texts", title_justify="left")
    shown.add_column("figure")
    kinds = [name for name in ("warm_start", "explanations", "given", "change") if name in result]
    for name in kinds:
        shown.add_column(name.replace("_", " "), justify="right")
        shown.add_column("95%", justify="right")
    for name, label in FIGURES.items():
        figures = (result[kind][name] for kind in kinds)
        shown.add_row(label, *(text for found in figures for text in cells(found["value"], found["ci95"])))
    return shown
