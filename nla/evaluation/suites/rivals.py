"""Black-box rivals: what other readers make of the same text, and what no reader at all would need.

`rivals`: no text is written. Fitted on activations of training documents; the evaluated rows are not seen. Linear
predictions count as they are, without normalising, as least squares means them: normalised they would be worse.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from rich.console import Group
from rich.table import Table
from torch import Tensor

from nla.core.fve import normalized_activations
from nla.core.ridge import PENALTIES, NormalEquations
from nla.errors import DataError
from nla.evaluation.activations import EvaluatedRows, with_positions
from nla.evaluation.bootstrap import Variance
from nla.evaluation.cells import cells
from nla.evaluation.explanations import score
from nla.evaluation.subject import Subject
from nla.evaluation.suites.controls import missing, training_rows

HELD_OUT = 5  # every fifth training document chooses the penalty
TAIL = 32  # tokens of a context that the bag of words is of
Tokens = Sequence[Sequence[int]]
LABELS = {
    "bag_of_words": f"ridge on a bag of the last {TAIL} tokens",
    "linear_tokens": "ridge on the last token's embedding",
    "token_mean": "mean activation of the last token",
}


def rivals(
    subject: Subject,
    *,
    documents: int = 512,
    positions: int = 8,
    last: Sequence[int] = (1, 4, 16),
    vocabulary: int = 2000,
) -> dict[str, Any]:
    """FVE of what needs neither an activation of the row nor a word about it.

    `last_tokens`: this pair's reconstructor on the context's last n tokens. `bag_of_words`, `linear_tokens`,
    `token_mean`, `pca`: fitted on `positions` activations of each of `documents` training documents; `activations` is
    their number, `reason` why there are none.
    """
    rows, variance = subject.rows, subject.variance
    tails = _tails(rows)
    result: dict[str, Any] = {"n": len(rows), "last_tokens": last_tokens(subject, tails, last)}
    try:
        training = training_rows(subject.target, with_positions(subject.data, positions), documents)
    except DataError as error:
        nothing = missing(f"no training activations: {error}")
        return {**result, "activations": 0, **dict.fromkeys(LABELS, nothing), "pca": nothing}
    truth, seen = normalized_activations(rows.activation), normalized_activations(training.activation)
    training_tails = _tails(training)
    bag = bag_of(training_tails, vocabulary)
    embedding: Any = subject.target.model.get_input_embeddings().weight
    ends, training_ends = (torch.tensor([row[-1] for row in each]) for each in (tails, training_tails))
    read = [_of_rows(embedding, each) for each in (training_ends, ends)]
    predictions = {
        "bag_of_words": ridge(bag(training_tails), seen, training.document, bag(tails)),
        "linear_tokens": ridge(read[0], seen, training.document, read[1]),
        "token_mean": token_mean(training_ends, seen, ends),
    }
    for name, prediction in predictions.items():
        result[name] = variance.fve(squared_error(prediction, truth))
    greedy = subject.greedy.scores.error
    return {**result, "activations": len(training), "pca": pca(seen, truth, variance, greedy)}


def last_tokens(subject: Subject, tails: Tokens, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """`{tokens, fve, ci95}` of this pair's reconstructor on the last tokens of each context, and on `source_tokens`."""
    rows, tokenizer, found = subject.rows, subject.target.tokenizer, []
    for length in lengths:
        texts = [str(text) for text in tokenizer.batch_decode([list(row[-length:]) for row in tails])]
        error = score(subject.reconstruct(texts), rows.activation).error
        found.append({"tokens": length, **subject.variance.fve(error)})
    error = score(subject.source_text, rows.activation).error
    return [*found, {"tokens": subject.settings.source_tokens, **subject.variance.fve(error)}]


def bag_of(texts: Tokens, vocabulary: int) -> Callable[[Tokens], Float[Tensor, "text id"]]:
    """Counts of the `vocabulary` most frequent token ids of these texts; other ids are not counted."""
    frequency = torch.bincount(torch.tensor([token for text in texts for token in text], dtype=torch.long))
    kept = frequency.argsort(descending=True, stable=True)[: min(vocabulary, int((frequency > 0).sum()))]
    column = {token: index for index, token in enumerate(kept.tolist())}

    def counts(given: Tokens) -> Float[Tensor, "text id"]:
        found = torch.zeros(len(given), len(column), dtype=torch.float64)
        for row, text in enumerate(given):
            for token in text:
                if token in column:
                    found[row, column[token]] += 1
        return found

    return counts


def ridge(
    inputs: Float[Tensor, "training input"],
    outputs: Float[Tensor, "training d_model"],
    document: Sequence[str],
    asked: Float[Tensor, "batch input"],
) -> Float[Tensor, "batch d_model"]:
    """Predictions of a ridge with intercept for `asked`; its penalty is best on a fifth of the training documents."""
    names = {name: index for index, name in enumerate(dict.fromkeys(document))}
    held_out = torch.tensor([names[name] % HELD_OUT == HELD_OUT - 1 for name in document])
    penalty = PENALTIES[len(PENALTIES) // 2]
    if bool(held_out.any()) and int((~held_out).sum()) > 1:
        guesses = _ridges(inputs[~held_out], outputs[~held_out], inputs[held_out], PENALTIES)
        errors = [float(squared_error(guess, outputs[held_out]).mean()) for guess in guesses]
        penalty = PENALTIES[errors.index(min(errors))]
    return _ridges(inputs, outputs, asked, [penalty])[0]


def _ridges(
    inputs: Tensor, outputs: Tensor, asked: Tensor, penalties: Sequence[float]
) -> list[Float[Tensor, "batch d_model"]]:
    """Of each penalty; inputs and outputs are centred, so that the intercept costs nothing."""
    inputs, asked = inputs.double(), asked.double()
    middle, level = inputs.mean(0), outputs.mean(0)
    if bool((inputs == inputs[:1]).all()):  # nothing to tell rows apart
        return [level.expand(len(asked), -1)] * len(penalties)
    equations = NormalEquations.empty(inputs.shape[1], outputs.shape[1])
    equations.add(inputs - middle, outputs - level)
    return [(asked - middle) @ weight.T + level for weight in equations.solve(penalties)]


def token_mean(
    tokens: Int[Tensor, " training"], activation: Float[Tensor, "training d_model"], asked: Int[Tensor, " batch"]
) -> Float[Tensor, "batch d_model"]:
    """The mean training activation at each token; that of all tokens where it was never read."""
    different, index = tokens.unique(return_inverse=True)
    total = torch.zeros(len(different), activation.shape[1], dtype=activation.dtype).index_add_(0, index, activation)
    means = total / index.bincount(minlength=len(different)).unsqueeze(1)
    where = torch.searchsorted(different, asked).clamp_max(len(different) - 1)
    return torch.where((different[where] == asked).unsqueeze(1), means[where], activation.mean(0))


def pca(
    training: Float[Tensor, "training d_model"],
    truth: Float[Tensor, "batch d_model"],
    variance: Variance,
    error: Float[Tensor, " batch"],
) -> dict[str, Any]:
    """`fve` by number of components fitted on training activations, and the number that equals this pair.

    `components` is the least k whose FVE reaches that of `error`; `components_ci95` those that reach the bounds of its
    interval. None, with `reason`, where all components together do not.
    """
    centre = training.mean(0)
    vectors = torch.linalg.eigh((training - centre).T @ (training - centre)).eigenvectors
    most = min(len(training) - 1, training.shape[1])
    told = ((truth - centre) @ vectors.flip(1)[:, :most]).square().cumsum(1)
    left = (truth - centre).square().sum(1, keepdim=True) - torch.cat([torch.zeros_like(told[:, :1]), told], 1)
    errors = left.clamp_min(0) / truth.shape[1]  # by number of components, from 0 on
    pair: dict[str, Any] = variance.fve(error)

    def reaches(fve: float) -> int | None:
        """The least number of components that does; more never explain less."""
        low, high = 0, most + 1
        while low < high:
            k = (low + high) // 2
            by_k: dict[str, Any] = variance.fve(errors[:, k])
            low, high = (low, k) if by_k["fve"] >= fve else (k + 1, high)
        return low if low <= most else None

    powers = [2**k for k in range(int(math.log2(max(1, most))) + 1)]
    result: dict[str, Any] = {
        "fve": [{"components": k, **variance.fve(errors[:, k])} for k in powers],
        "components": reaches(pair["fve"]),
        "components_ci95": None if pair["ci95"] is None else [reaches(bound) for bound in pair["ci95"]],
        "available": most,
    }
    if result["components"] is None:
        result["reason"] = f"all {most} components together explain less than this pair"
    return result


def squared_error(
    prediction: Float[Tensor, "batch d_model"], truth: Float[Tensor, "batch d_model"]
) -> Float[Tensor, " batch"]:
    """The mean square over dimensions, of a prediction as it is."""
    return (prediction - truth).square().mean(-1)


def _tails(rows: EvaluatedRows) -> list[list[int]]:
    """Ids of each context's last `TAIL` tokens."""
    return [tokens[-TAIL:] for tokens in rows.tokens]


def _of_rows(embedding: Tensor, tokens: Int[Tensor, " batch"]) -> Float[Tensor, "batch d_model"]:
    return embedding[tokens.to(embedding.device)].detach().cpu().double()


def table(result: dict[str, Any]) -> Group:
    found = Table(title="Rivals: the same activations without this pair's words", title_justify="left")
    found.add_column("from the text alone")
    for column in ("FVE", "95% interval"):
        found.add_column(column, justify="right")
    for line in result["last_tokens"]:
        found.add_row(f"this reconstructor on the last {line['tokens']} tokens", *cells(line["fve"], line["ci95"]))
    for name, label in LABELS.items():
        found.add_row(label, *cells(result[name]["fve"], result[name]["ci95"]))
    found.add_section()
    components = result["pca"]
    for line in components["fve"] or ():
        found.add_row(f"{line['components']} principal components", *cells(line["fve"], line["ci95"]))
    equal, interval = components.get("components"), components.get("components_ci95")
    if equal is None:
        return Group(found, components["reason"])
    bounds = [f"over {components['available']}" if bound is None else str(bound) for bound in interval or ()]
    shown = f" ({' to '.join(bounds)})" if bounds else ""
    return Group(found, f"This pair explains as much as {equal} principal components{shown}.")
