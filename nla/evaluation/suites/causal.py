"""Does the model's output change when the reconstruction replaces the activation?

At each row's last token the output of block `layer` is replaced by a vector at the activation's norm, and the
next-token distribution is compared with the clean one. Beside the reconstruction: vectors that carry less about the
activation, and the activation itself, which must change nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from rich import box
from rich.table import Table
from torch import Tensor

from nla.core.fve import normalized_activations
from nla.core.records import well_formed
from nla.errors import ModelError
from nla.evaluation.bootstrap import Resamples
from nla.evaluation.cells import cells
from nla.evaluation.ranks import shared
from nla.evaluation.subject import Subject
from nla.evaluation.suites.controls import other_document
from nla.evaluation.token_types import token_types
from nla.models.target import Target

# What takes the activation's place, in the order of the table.
VECTORS = {
    "explanation": "reconstruction",
    "warm_start": "that of the warm start",
    "source_text": "of the last tokens",
    "same_document": "of another position",
    "shuffled": "of another document",
    "mean": "mean activation",
    "noise": "random direction",
    "zero": "zero",
    "activation": "the activation",
}
CONTROLS = ("source_text", "same_document", "shuffled", "mean", "noise", "zero")
# Relative difference between the activation as evaluated and as read again, on average and of one row; and what the
# activation itself may cause by rounding, of the mean's KL. On SmolLM2's block 20 in float32 the difference is 1e-6; in
# bfloat16 0.01, but 0.09 for a text of four tokens, whose batched reading is itself 0.06 from float32.
SAME, UNCHANGED = 0.05, 0.01
SAME_IN_16_BITS, UNCHANGED_IN_16_BITS = 0.25, 0.05
ROUNDING = 1e-3  # nats, besides
HALF = 0.5  # of the mean's KL: the reconstruction should stay below
TEMPLATE = "special"  # the token type whose next token is fixed by the template: told apart


@dataclass(frozen=True, slots=True)
class StandIn:
    """A vector for each row, of any norm; `asked`: the rows that have one; `reason`: why none has."""

    vector: Float[Tensor, "batch d_model"]
    asked: Bool[Tensor, " batch"]
    reason: str | None = None


def causal(subject: Subject) -> dict[str, Any]:
    """By vector `kl`, `kl_share` (of the mean's KL) and `loss_recovered`, each with interval; by token type.

    Raises ModelError if the spliced activation itself changes the distribution, or if the context read again gives
    another activation: the figures would be about something else.
    """
    rows, stand_ins = subject.rows, _stand_ins(subject)
    names = [*stand_ins, "clean"]
    clean = torch.full((subject.target.d_model,), torch.nan)  # left as the model computes it

    def row(index: int) -> tuple[Float[Tensor, "variant 2"], float]:
        return _row(subject, index, torch.stack([*(given.vector[index] for given in stand_ins.values()), clean]))

    measured = shared(range(len(rows)), row)
    apart = sum(apart for _, apart in measured) / len(measured)
    if not apart <= SAME:  # also if it is NaN
        raise ModelError(
            f"contexts read again give activations {apart:.2f} of their norm away on average: the splice would be "
            "about other activations; check that target and data are those that were evaluated"
        )
    found = torch.stack([figures for figures, _ in measured])  # [batch, variant, 2]: KL, loss
    kl = {name: found[:, column, 0] for column, name in enumerate(names)}
    loss = {name: found[:, column, 1] for column, name in enumerate(names)}
    _check_unchanged(float(kl["activation"].mean()), float(kl["mean"].mean()), subject)
    types = token_types(subject.target.tokenizer, rows.tokens, rows.following.tolist())
    masks = {name: torch.tensor([kind == name for kind in types]) for name in sorted(set(types))}
    ordinary, known = torch.tensor([kind != TEMPLATE for kind in types]), rows.following >= 0
    result: dict[str, Any] = {"n": int(ordinary.sum()), "n_loss": int((ordinary & known).sum())}
    result["vectors"] = {
        name: _figures(name, kl, loss, ordinary & given.asked, known, subject.resamples)
        | ({} if given.reason is None else {"reason": given.reason})
        for name, given in stand_ins.items()
    }
    for name in CONTROLS:
        above, asked = kl[name] - kl["explanation"], ordinary & stand_ins[name].asked
        result["vectors"][name]["kl_above_explanation"] = _mean(above, asked, subject.resamples)
    result["by_token_type"] = {
        kind: {"n": int(mask.sum())}
        | _figures("explanation", kl, loss, mask, known if kind != TEMPLATE else None, subject.resamples)
        for kind, mask in masks.items()
    }
    result["flags"] = _flags(result["vectors"])
    return result


def _stand_ins(subject: Subject) -> dict[str, StandIn]:
    """By name; a malformed explanation counts as a random direction, as in FVE it does as an orthogonal one."""
    rows, everywhere = subject.rows, torch.ones(len(subject.rows), dtype=torch.bool)
    noise = torch.randn(rows.activation.shape, generator=torch.Generator().manual_seed(subject.seed))
    read = {
        name: torch.where(well_formed(variant.texts.explanation).unsqueeze(1), variant.prediction, noise)
        for name, variant in subject.variants.items()
        if name in ("greedy", "warm_start")
    }
    found = {"explanation": StandIn(read["greedy"], everywhere)}
    if "warm_start" in read:
        found["warm_start"] = StandIn(read["warm_start"], everywhere)
    found["source_text"] = StandIn(subject.source_text, everywhere)
    neighbour = torch.tensor(same_document(rows.document_id, rows.position.tolist()))
    asked, alone = neighbour >= 0, "no document has two positions"
    found["same_document"] = StandIn(read["greedy"][neighbour], asked, None if bool(asked.any()) else alone)
    partner = other_document(rows.document, subject.seed)
    few = "one document has more than half of the rows: too few others to exchange with"
    found["shuffled"] = (
        StandIn(noise, ~everywhere, few) if partner is None else StandIn(read["greedy"][partner], everywhere)
    )
    mean = normalized_activations(rows.activation).mean(0, keepdim=True).float()
    for name, vector in (("mean", mean.expand(len(rows), -1)), ("noise", noise), ("zero", torch.zeros_like(noise))):
        found[name] = StandIn(vector, everywhere)
    found["activation"] = StandIn(rows.activation, everywhere)
    return found


def same_document(document: Sequence[str], position: Sequence[int]) -> list[int]:
    """For each row the one at the nearest other position of the same text; -1 if it is alone."""
    rows_of: dict[str, list[int]] = {}
    for index, name in enumerate(document):
        rows_of.setdefault(name, []).append(index)

    def nearest(index: int) -> int:
        others = [other for other in rows_of[document[index]] if other != index]
        return min(others, key=lambda other: (abs(position[other] - position[index]), position[other]), default=-1)

    return [nearest(index) for index in range(len(document))]


def _row(
    subject: Subject, index: int, vectors: Float[Tensor, "variant d_model"]
) -> tuple[Float[Tensor, "variant 2"], float]:
    """KL from the clean distribution, and the next token's loss, for each vector; the clean pass is last.

    And how far the activation is, relative to its norm, from the one that was evaluated.
    """
    target, rows = subject.target, subject.rows
    tokens = torch.tensor(rows.tokens[index], device=target.device)
    logits, present = target.next_logits(tokens, vectors.to(target.device))
    activation = rows.activation[index].to(present)
    apart = float((present - activation).norm() / activation.norm())
    check_same(apart, f"row {index} ({rows.document_id[index]})", _full(target))
    log_probs = logits.double().log_softmax(-1) if logits.device.type != "mps" else logits.log_softmax(-1)
    clean = log_probs[-1]
    kl = (clean.exp() * (clean - log_probs)).sum(-1).clamp_min(0)
    following = int(rows.following[index])
    loss = -log_probs[:, following] if following >= 0 else torch.zeros_like(kl)
    return torch.stack([kl, loss], 1).cpu().double(), apart


def check_same(apart: float, row: str, full_precision: bool) -> None:
    """Raises ModelError for an activation that is further away than rounding takes it; also for NaN."""
    if not apart <= (SAME if full_precision else SAME_IN_16_BITS):
        raise ModelError(
            f"{row}: its context read again gives an activation {apart:.2f} of its norm away: the splice would be "
            "about another activation; evaluate with dtype=float32 to tell rounding from a wrong reading"
        )


def _full(target: Target) -> bool:
    """Whether the target computes in full precision."""
    return next(target.model.parameters()).dtype == torch.float32


def _check_unchanged(changed: float, mean: float, subject: Subject) -> None:
    share = UNCHANGED if _full(subject.target) else UNCHANGED_IN_16_BITS
    if not changed <= share * mean + ROUNDING:
        raise ModelError(
            f"the activation itself, spliced in, changes the next token's distribution by {changed:.3g} nats, the mean "
            f"by {mean:.3g}: the splice does not reproduce {subject.nla.base_model} at layer {subject.target.layer}"
        )


def _figures(
    name: str,
    kl: Mapping[str, Float[Tensor, " batch"]],
    loss: Mapping[str, Float[Tensor, " batch"]],
    asked: Bool[Tensor, " batch"],
    known: Bool[Tensor, " batch"] | None,
    resamples: Resamples,
) -> dict[str, Any]:
    """Of one vector on the rows `asked`; loss recovered on those `known` to have a next token, None: on none."""
    figures = {"kl": _mean(kl[name], asked, resamples), "kl_share": _ratio(kl[name], kl["mean"], asked, resamples)}
    if known is None:
        figures["loss_recovered"] = _undefined("the next token is fixed by the template")
    else:
        gains = loss["mean"] - loss[name], loss["mean"] - loss["clean"]
        figures["loss_recovered"] = _ratio(*gains, asked & known, resamples)
    return figures


def _mean(value: Float[Tensor, " batch"], mask: Bool[Tensor, " batch"], resamples: Resamples) -> dict[str, Any]:
    return _ratio(value, torch.ones_like(value), mask, resamples)


def _ratio(
    above: Float[Tensor, " batch"], below: Float[Tensor, " batch"], mask: Bool[Tensor, " batch"], resamples: Resamples
) -> dict[str, Any]:
    """`{value, ci95, n}` of a ratio of sums over the rows of `mask`; None with `reason` if it is not defined."""
    n = int(mask.sum())
    total, resampled = resamples.sums(torch.stack([above, below], 1) * mask.unsqueeze(1))
    if n == 0 or float(total[1]) <= 0:
        return _undefined("no such row" if n == 0 else "the mean in its place costs nothing here", n)
    ratios = torch.where(resampled[:, 1] > 0, resampled[:, 0] / resampled[:, 1], torch.nan)
    return {"value": float(total[0] / total[1]), "ci95": resamples.interval(ratios), "n": n}


def _undefined(reason: str, n: int = 0) -> dict[str, Any]:
    return {"value": None, "ci95": None, "n": n, "reason": reason}


def _flags(vectors: Mapping[str, dict[str, Any]]) -> list[str]:
    flags, share = [], vectors["explanation"]["kl_share"]["value"]
    if share is not None and share > HALF:
        flags.append(f"the spliced reconstruction keeps {share:.2f} of the mean's KL; at most {HALF} is wanted")
    above = {name: vectors[name]["kl_above_explanation"]["ci95"] for name in CONTROLS}
    equal = [VECTORS[name] for name, interval in above.items() if interval is not None and interval[0] <= 0]
    if equal:
        flags.append(f"the spliced reconstruction is not clearly better than: {', '.join(equal)}")
    return flags


def table(result: dict[str, Any]) -> Table:
    """KL and loss recovered of each vector, then of the explanation by token type."""
    title = f"Spliced into the model in place of the activation, {result['n']} rows"
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.add_column("vector", no_wrap=True)
    for heading in ("KL, nats", "95%", "of mean's", "95%", "loss\nrecovered"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for name, label in VECTORS.items():
        if name in result["vectors"]:
            shown.add_row(label, *_cells(result["vectors"][name]))
    shown.add_section()
    for name, figures in result["by_token_type"].items():
        shown.add_row(f"at {name} ({figures['n']})", *_cells(figures))
    return shown


def _cells(figures: dict[str, Any]) -> Iterator[str]:
    for key in ("kl", "kl_share", "loss_recovered"):
        value, interval = cells(figures[key]["value"], figures[key]["ci95"], "{:.2f}")
        yield value
        if key != "loss_recovered":  # its interval has no room
            yield interval.replace(" to ", "–")
