"""What an FVE has to beat, and how it changes when the same explanations are read differently.

Controls: constants, texts that say nothing about this activation, texts that need no verbalizer. Every control but the
two constants goes through the same reconstructor. Malformed texts count as orthogonal here too.

Other readings: only the first tokens, without quotations, or by a frozen reconstructor. FVE by prefix length shows
where in its text a pair says what matters. A frozen second reconstructor shows how much of an FVE is a code
that the two halves have learned together.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nla.core.fve import normalized_activations
from nla.core.objectives import normalize
from nla.errors import DataError
from nla.evaluation.activations import EvaluatedRows, EvaluationData, read_rows
from nla.evaluation.bootstrap import Variance
from nla.evaluation.explanations import Texts, explain, reconstruct, score
from nla.models.explanations import prefixes, without_quotes
from nla.models.pair import NLA
from nla.models.target import Target

# Every control that an evaluation computes, in the order of its table, and what it puts in place of the explanation.
CONTROLS = {
    "mean": "mean of the activations",
    "constant_direction": "best constant direction",
    "empty_text": "empty text",
    "mean_activation": "explanation of the mean activation",
    "shuffled": "explanation of another document",
    "source_text": "the context's last tokens",
    "nearest_neighbour": "nearest training activation's explanation",
}
TRAINING_SPLITS = ("joint", "warm_start")


def missing(reason: str) -> dict[str, Any]:
    """A number that cannot be computed, and why."""
    return {"fve": None, "ci95": None, "reason": reason}


def fixed_texts(
    nla: NLA, rows: EvaluatedRows, source_text: Float[Tensor, "batch d_model"], variance: Variance, batch_size: int
) -> dict[str, Any]:
    """`empty_text`: no explanation at all. `source_text`: the context's last tokens in place of an explanation."""
    empty = reconstruct(nla, [""], batch_size).expand(len(rows), -1)
    return {
        "empty_text": variance.fve(score(empty, rows.activation).error),
        "source_text": variance.fve(score(source_text, rows.activation).error),
    }


def mean_activation(
    nla: NLA, rows: EvaluatedRows, variance: Variance, *, max_new_tokens: int, batch_size: int
) -> dict[str, Any]:
    """Each activation with what the same verbalizer writes of their mean: what it says without anything to read.

    `text` is that explanation.
    """
    mean = normalized_activations(rows.activation).mean(0, keepdim=True).to(rows.activation)
    texts = explain(nla, mean, max_new_tokens=max_new_tokens, batch_size=1)
    prediction = reconstruct(nla, texts.explanation, batch_size).expand(len(rows), -1)
    error = score(prediction, rows.activation, texts.explanation * len(rows)).error
    return {**variance.fve(error), "text": texts.explanation[0]}


def shuffled(
    rows: EvaluatedRows, texts: Texts, prediction: Float[Tensor, "batch d_model"], variance: Variance, seed: int
) -> dict[str, Any]:
    """Each activation with the explanation of a position in another document."""
    partner = other_document(rows.document, seed)
    if partner is None:
        return missing("one document has more than half of the rows: too few others to exchange with")
    return variance.fve(score(prediction[partner], rows.activation, [texts.explanation[i] for i in partner]).error)


def other_document(document: list[str], seed: int) -> list[int] | None:
    """For each row a row of another document, each used once; None if one document has more than half of the rows.

    Rows are listed document by document, in random order, and shifted by the number of rows of the largest document.
    """
    rows_of: dict[str, list[int]] = {}
    for index, name in enumerate(document):
        rows_of.setdefault(name, []).append(index)
    largest = max(map(len, rows_of.values()))
    if 2 * largest > len(document):
        return None
    names = sorted(rows_of)
    random.Random(seed).shuffle(names)
    order = [index for name in names for index in rows_of[name]]
    partner = [0] * len(order)
    for rank, index in enumerate(order):
        partner[index] = order[(rank + largest) % len(order)]
    return partner


def nearest_neighbour(
    nla: NLA,
    target: Target,
    data: EvaluationData,
    rows: EvaluatedRows,
    variance: Variance,
    *,
    documents: int,
    max_new_tokens: int,
    batch_size: int,
) -> dict[str, Any]:
    """The rival that looks up a similar case: the explanation of the nearest training activation.

    Activations of `documents` training documents (the joint split's, else the warm start's) are read on the fly. Those
    nearest by cosine to an evaluated activation are explained greedily by the same verbalizer; that text replaces the
    activation's own. Warm-start texts are not used, since not every corpus has them.
    """
    if documents == 0:
        return missing("switched off by neighbour_documents=0")
    try:
        training = training_rows(target, data, documents)
    except DataError as error:
        return missing(f"no training activations: {error}")
    nearest = _nearest(rows.activation, training.activation)
    chosen, choice = nearest.unique(return_inverse=True)
    texts = explain(nla, training.activation[chosen], max_new_tokens=max_new_tokens, batch_size=batch_size)
    borrowed = [texts.explanation[index] for index in choice.tolist()]
    result = variance.fve(score(reconstruct(nla, borrowed, batch_size), rows.activation, borrowed).error)
    return {**result, "activations": len(training)}


def by_prefix(
    nla: NLA, rows: EvaluatedRows, texts: Texts, variance: Variance, lengths: Sequence[int], batch_size: int
) -> list[dict[str, Any]]:
    """`{tokens, fve, ci95}` for each length, counted in the reconstructor's tokens, without tags.

    Shorter texts are read whole; malformed ones count as orthogonal at every length.
    """
    rows_by_length = []
    for length in lengths:
        cut = prefixes(nla.reconstructor.tokenizer, [text or "" for text in texts.explanation], [length] * len(rows))
        error = score(reconstruct(nla, cut, batch_size), rows.activation, texts.explanation).error
        rows_by_length.append({"tokens": length, **variance.fve(error)})
    return rows_by_length


def unquoted(nla: NLA, rows: EvaluatedRows, texts: Texts, variance: Variance, batch_size: int) -> dict[str, Any]:
    """`{fve, ci95, quoted_share}` of the explanations without what they quote; the share is of their characters.

    What is lost compared with `fve` was in fragments of the text itself, not in words about it.
    """
    whole = [text or "" for text in texts.explanation]
    bare = [without_quotes(text) for text in whole]
    share = 1 - sum(map(len, bare)) / max(1, sum(map(len, whole)))
    if bare == whole:
        return {**missing("no explanation quotes anything"), "quoted_share": 0.0}
    error = score(reconstruct(nla, bare, batch_size), rows.activation, texts.explanation).error
    return {**variance.fve(error), "quoted_share": share}


def frozen_reconstructor(
    warm_start: NLA | str, rows: EvaluatedRows, texts: Texts, variance: Variance, batch_size: int
) -> dict[str, Any]:
    """FVE of these texts by the warm start's reconstructor, which joint training has not touched."""
    if isinstance(warm_start, str):
        return missing(warm_start)
    prediction = reconstruct(warm_start, texts.explanation, batch_size)
    return variance.fve(score(prediction, rows.activation, texts.explanation).error)


def training_rows(target: Target, data: EvaluationData, documents: int, tail_tokens: int = 1) -> EvaluatedRows:
    """Activations of training documents: the joint split's, else the warm start's. Raises DataError."""
    for split in TRAINING_SPLITS[:-1]:
        try:
            return read_rows(target, data, split, documents, tail_tokens)
        except DataError:
            continue
    return read_rows(target, data, TRAINING_SPLITS[-1], documents, tail_tokens)


def _nearest(
    activation: Float[Tensor, "batch d_model"], training: Float[Tensor, "other d_model"], at_once: int = 1024
) -> Tensor:
    """The index of the training activation with the highest cosine."""
    units = normalize(training, 1.0)
    return torch.cat([(normalize(chunk, 1.0) @ units.T).argmax(1) for chunk in activation.split(at_once)])
