"""Which layer to explain, measured before any training: all blocks in one pass over a few thousand positions.

For each block: how large its activations are and how they are spread, and how much of them a ridge regression reads
from texts about the same positions, through the untrained model's own states (a reconstructor's without training).
Texts: the target's description of the position (`TargetTeacher`), its next words alone, its last words alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nla.core.fve import normalized_activations
from nla.core.objectives import reconstruction_error
from nla.core.ridge import NormalEquations
from nla.data.documents import Prepared, ReadingPlan, collate, prepare
from nla.data.positions import keyed_seed
from nla.data.source import Source
from nla.data.teachers.expectations import Expectation, expectations
from nla.data.teachers.target import TargetTeacher
from nla.errors import DataError
from nla.evaluation.bootstrap import Resamples, Variance
from nla.models.backbone import depth
from nla.models.prompts import pad_id, reconstructor_tokens
from nla.models.target import Target

SHARES = {"warm_start": 0.7, "validation": 0.1, "test": 0.2}  # fit, penalty, reported
AT_ONCE = 64  # documents, or texts, of a forward pass
LATEST = 5 / 6  # of the depth: later blocks are about the next word alone
VIEWS = {  # of the description: the lines that each keeps
    "explanation": {},
    "next_words": {"about": 0, "quoted": 0},
    "last_words": {"about": 0, "expected": 0, "continued": 0},
}


@dataclass(frozen=True, slots=True)
class Block:
    """Figures of one block's activations. Shares are of `g`, the activation at norm sqrt(d).

    `mean_share`: of the energy, in the mean. `top2_share`: of the variance, in the two largest dimensions.
    `effective_dimension`: (sum of the covariance's eigenvalues)^2 / sum of their squares. `fve`: by view,
    `{fve, ci95}` of the ridge on held-out documents.
    """

    layer: int
    median_norm: float
    mean_share: float
    top2_share: float
    effective_dimension: float
    fve: dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class LayerSurvey:
    """All blocks, from the first to the last, and the block that is proposed."""

    blocks: list[Block]
    proposed: int
    positions: int
    held_out: int
    documents: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Part:
    """The positions of a split: activations of all blocks, and what is said about them."""

    activation: Float[Tensor, "batch layer d_model"]
    document: list[str]
    texts: dict[str, list[str]]


@torch.no_grad()
def survey(
    target: Target,
    source: Source,
    teacher: TargetTeacher,
    template: str,
    plan: ReadingPlan,
    positions: int,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    progress: Callable[[str, int, int], Any] = lambda what, done, total: None,
) -> LayerSurvey:
    """Measure every block of the target. Raises DataError if a split has too few positions.

    Args:
        source: whose splits warm_start, validation and test are used.
        teacher: describes the positions; its model must be the target.
        template: the reconstructor's prompt.
        plan: which positions of a document are read.
        positions: in all, over the three splits.
        bootstrap: resamples of documents behind each interval.
        progress: called with a phase, what is done of it, and its size.
    """
    layers = list(range(depth(target.model)))
    chosen = {
        split: _documents(target, source, plan, split, round(positions * share)) for split, share in SHARES.items()
    }
    parts = {split: _read(target, documents, layers, teacher, progress) for split, documents in chosen.items()}
    states = {
        (split, view): _states(target, part.texts[view], template, layers, lambda d, t, v=view: progress(v, d, t))
        for split, part in parts.items()
        for view in VIEWS
    }
    test = parts["test"]
    resamples = Resamples(test.document, bootstrap, seed)
    blocks = []
    for index, layer in enumerate(layers):
        variance = Variance(test.activation[:, index], resamples)
        fve = {}
        for view in VIEWS:
            inputs = {split: states[split, view][:, index] for split in SHARES}
            outputs = {split: part.activation[:, index] for split, part in parts.items()}
            fve[view] = variance.fve(_held_out_error(inputs, outputs))
        blocks.append(_figures(layer, torch.cat([part.activation[:, index] for part in parts.values()]), fve))
        progress("ridge", index + 1, len(layers))
    eligible = [block for block in blocks if block.layer < LATEST * len(blocks)]
    best = max(eligible, key=lambda block: block.fve["explanation"]["fve"])
    total = sum(len(part.document) for part in parts.values())
    return LayerSurvey(blocks, best.layer, total, len(test.document), resamples.documents)


def _documents(target: Target, source: Source, plan: ReadingPlan, split: str, positions: int) -> list[Prepared]:
    """Documents with `positions` positions, chosen by a hash of their ids."""
    documents = sorted(source.documents(split), key=lambda document: keyed_seed("layers", document.id))
    prepared, _ = prepare(documents[: math.ceil(positions / plan.positions_per_document)], target.tokenizer, plan)
    if sum(len(item.positions) for item in prepared) < 2:
        raise DataError(f"split '{split}' gives fewer than two positions: give more or longer texts")
    return prepared


def _read(
    target: Target, prepared: list[Prepared], layers: list[int], teacher: TargetTeacher, progress: Callable[..., Any]
) -> _Part:
    values = []
    for first in range(0, len(prepared), AT_ONCE):
        batch = collate([(item, 0) for item in prepared[first : first + AT_ONCE]], pad_id(target.tokenizer))
        batch = batch.to(target.device)
        values.append(target(batch.tokens, batch.mask, batch.row, batch.position, layers=layers).cpu())
        progress("reading", min(first + AT_ONCE, len(prepared)), len(prepared))
    contexts = [item.document.text[:end] for item in prepared for end in item.ends]
    described: list[Expectation | None] = [None] * len(contexts)
    read = expectations(target.model, target.tokenizer, contexts, teacher.continued)
    for done, (index, expectation) in enumerate(read, 1):
        described[index] = expectation
        progress("describing", done, len(contexts))
    texts = {}
    for view, off in VIEWS.items():
        lines = {"about": teacher.about, "quoted": teacher.quoted, "expected": teacher.expected,
                 "continued": teacher.continued, **off}  # fmt: skip
        speaker = TargetTeacher(teacher.model, **lines)
        texts[view] = [
            "" if expectation is None else speaker.describe(context, expectation)
            for context, expectation in zip(contexts, described, strict=True)
        ]
    return _Part(torch.cat(values), [item.document.root for item in prepared for _ in item.ends], texts)


def _states(
    target: Target, texts: Sequence[str], template: str, layers: list[int], progress: Callable[[int, int], Any]
) -> Float[Tensor, "text layer d_model"]:
    """The untrained reconstructor's state of each text, after every block."""
    states = torch.zeros(len(texts), len(layers), target.d_model)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    for first in range(0, len(order), AT_ONCE):
        rows = order[first : first + AT_ONCE]
        tokens, mask = reconstructor_tokens(target.tokenizer, template, [texts[row] for row in rows], 512)
        tokens, mask = tokens.to(target.device), mask.to(target.device)
        row = torch.arange(len(rows), device=target.device)
        states[rows] = target(tokens, mask, row, mask.sum(1) - 1, layers=layers).cpu()
        progress(min(first + AT_ONCE, len(order)), len(order))
    return states


def _held_out_error(inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> Float[Tensor, " batch"]:
    """Errors on the test split of the ridge whose penalty is best on the validation split."""
    scale = math.sqrt(outputs["test"].shape[-1])
    equations = NormalEquations.empty(inputs["test"].shape[-1], outputs["test"].shape[-1])
    equations.add(inputs["warm_start"], normalized_activations(outputs["warm_start"]))

    def error(head: Tensor, split: str) -> Float[Tensor, " batch"]:
        return reconstruction_error(inputs[split].double() @ head.T, outputs[split].double(), scale)

    return error(min(equations.solve(), key=lambda head: float(error(head, "validation").mean())), "test")


def _figures(layer: int, activation: Float[Tensor, "batch d_model"], fve: dict[str, dict[str, Any]]) -> Block:
    g = normalized_activations(activation)
    variance = g.var(0, correction=0)
    spectrum = torch.linalg.eigvalsh(torch.cov(g.T, correction=0)).clamp_min(0)
    return Block(
        layer=layer,
        median_norm=float(activation.norm(dim=-1).median()),
        mean_share=float(g.mean(0).square().sum() / g.shape[1]),
        top2_share=float(variance.topk(2).values.sum() / variance.sum()),
        effective_dimension=float(spectrum.sum().square() / spectrum.square().sum()),
        fve=fve,
    )
