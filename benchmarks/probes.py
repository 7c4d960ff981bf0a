"""What the activations of a small target carry: known facts read off by linear probes, and explained by ridge.

Everything is held out by document. A *position* is a token with some context before it; a fact counts where the text
up to that token has revealed it.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from quality import Annotated
from torch import Tensor

from nla.core.objectives import normalize

FactsOf = Callable[[str, str], list[tuple[str, str]]]


def choose_positions(documents: Sequence[Annotated], count: int, context: int = 24, seed: int = 0) -> list[list[int]]:
    """`count` token positions per document with at least `context` tokens read, keyed by seed and document id."""
    chosen = []
    for document in documents:
        eligible = range(context - 1, len(document.tokens) - 1)
        rng = random.Random(f"{seed}/{document.id}")
        chosen.append(sorted(rng.sample(eligible, min(count, len(eligible)))))
    return chosen


@dataclass(frozen=True, slots=True)
class Labels:
    """The known facts at each chosen position: index into `values[kind]`, -1 where the fact is not known yet."""

    kinds: tuple[str, ...]
    values: dict[str, tuple[str, ...]]
    index: Int[Tensor, "batch kind"]
    document: Int[Tensor, " batch"]

    def one_hot(self) -> Float[Tensor, "batch feature"]:
        columns = [F.one_hot(self.index[:, c] + 1, len(self.values[k]) + 1)[:, 1:] for c, k in enumerate(self.kinds)]
        return torch.cat(columns, dim=1).float()


def label(documents: Sequence[Annotated], positions: Sequence[Sequence[int]], facts: FactsOf) -> Labels:
    """What the text has revealed at each position, by `facts(document id, text so far)`."""
    known = [
        dict(facts(document.id, document.text[: document.ends[position]]))
        for document, chosen in zip(documents, positions, strict=True)
        for position in chosen
    ]
    kinds = tuple(dict.fromkeys(kind for row in known for kind in row))
    values = {kind: tuple(sorted({row[kind] for row in known if kind in row})) for kind in kinds}
    rows = [[values[kind].index(row[kind]) if kind in row else -1 for kind in kinds] for row in known]
    owner = [index for index, chosen in enumerate(positions) for _ in chosen]
    return Labels(kinds, values, torch.tensor(rows), torch.tensor(owner))


def probe(
    activation: Float[Tensor, "batch d_model"],
    labels: Labels,
    training: Bool[Tensor, " batch"],
    penalty: float = 1e-3,
    steps: int = 100,
) -> dict[str, float]:
    """Held-out accuracy per kind of a multinomial logistic regression on standardised activations (LBFGS)."""
    mean, deviation = activation[training].mean(0), activation[training].std(0).clamp_min(1e-6)
    features = (activation - mean) / deviation
    sizes = [len(labels.values[kind]) for kind in labels.kinds]
    weight = torch.zeros(features.shape[1], sum(sizes), requires_grad=True)
    bias = torch.zeros(sum(sizes), requires_grad=True)
    inputs, wanted = features[training], labels.index[training]

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = (inputs @ weight + bias).split(sizes, dim=1)
        losses = [F.cross_entropy(scores, wanted[:, c], ignore_index=-1) for c, scores in enumerate(logits)]
        loss = torch.stack(losses).sum() + penalty * weight.square().sum()
        loss.backward()
        return loss

    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, history_size=10, line_search_fn="strong_wolfe")
    optimizer.step(closure)
    with torch.no_grad():
        guesses = [scores.argmax(1) for scores in (features[~training] @ weight + bias).split(sizes, dim=1)]
    return {kind: _accuracy(guess, labels, c, ~training) for c, (kind, guess) in enumerate(zip(labels.kinds, guesses))}


def majority(labels: Labels, training: Bool[Tensor, " batch"]) -> dict[str, float]:
    """Held-out accuracy of always guessing the value that is most frequent in training."""
    accuracy = {}
    for c, kind in enumerate(labels.kinds):
        counts = Counter(index for index in labels.index[training, c].tolist() if index >= 0)
        guess = torch.full((int((~training).sum()),), counts.most_common(1)[0][0])
        accuracy[kind] = _accuracy(guess, labels, c, ~training)
    return accuracy


def _accuracy(guess: Int[Tensor, " held_out"], labels: Labels, column: int, rows: Bool[Tensor, " batch"]) -> float:
    wanted = labels.index[rows, column]
    return (guess == wanted)[wanted >= 0].double().mean().item()


def ridge_r2(
    features: Float[Tensor, "batch feature"],
    activation: Float[Tensor, "layer batch d_model"],
    training: Bool[Tensor, " batch"],
    penalty: float = 3.0,
) -> list[float]:
    """Held-out R^2 per layer (variance weighted) of a ridge regression onto activations normalised to sqrt(d)."""
    layers, _, width = activation.shape
    wanted = normalize(activation, width**0.5).transpose(0, 1).flatten(1)
    features = features[:, features[training].any(0)]
    centre, mean = features[training].mean(0), wanted[training].mean(0)
    inputs = features[training] - centre
    gram = (inputs.T @ inputs).double() + penalty * torch.eye(inputs.shape[1], dtype=torch.double)
    weight = torch.linalg.solve(gram, (inputs.T @ (wanted[training] - mean)).double())
    held_out = wanted[~training].double()
    error = held_out - mean - (features[~training] - centre).double() @ weight
    spread = held_out - held_out.mean(0)
    share = error.square().sum(0).view(layers, width).sum(1) / spread.square().sum(0).view(layers, width).sum(1)
    return (1 - share).tolist()
