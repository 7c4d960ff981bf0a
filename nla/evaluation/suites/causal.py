"""Does the model go on as before when the reconstruction takes the activation's place?

At each row's last token the output of block `layer` is replaced by a vector, at the activation's norm, and the next
token's distribution is compared with the clean one. Beside the reconstruction: vectors that know less about the
activation, and the activation itself, which must change nothing.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from rich.table import Table
from torch import Tensor

from nla.core.fve import normalized_activations
from nla.errors import ModelError
from nla.evaluation.bootstrap import Resamples
from nla.evaluation.cells import cells
from nla.evaluation.ranks import shared
from nla.evaluation.subject import Subject
from nla.evaluation.suites.controls import other_document
from nla.evaluation.token_types import token_types

# What takes the activation's place, in the order of the table.
VECTORS = {
    "explanation": "this pair's reconstruction",
    "warm_start": "the warm start's reconstruction",
    "source_text": "reconstruction of the context's last tokens",
    "same_document": "reconstruction of another position of the text",
    "shuffled": "reconstruction of another document",
    "mean": "mean of the activations",
    "noise": "random direction",
    "zero": "nothing (zero)",
    "activation": "the activation itself",
}
UNCHANGED = 0.05  # nats of KL that the activation itself may cause: rounding in 16 bits
SAME = 0.05  # relative difference between the activation as evaluated and as read again
HALF = 0.5  # of the mean's KL: the reconstruction should stay below
TEMPLATE = ("special",)  # token types whose next token is fixed by the template: told apart


def causal(subject: Subject) -> dict[str, Any]:
    """By vector `kl`, `kl_share` (of the mean's KL) and `loss_recovered`, each with interval; KL by token type.

    Raises ModelError if the spliced activation itself changes the distribution, or if the context read again gives
    another activation: the figures would be about something else.
    """
    rows = subject.rows
    vectors = _vectors(subject)
    names = list(vectors)

    def row(index: int) -> Float[Tensor, "variant 2"]:
        return _row(subject, index, torch.stack([vectors[name][index] for name in names]))

    found = torch.stack(shared(range(len(rows)), row))  # [batch, variant, 2]: KL, loss
    kl = {name: found[:, column, 0] for column, name in enumerate(names)}
    loss = {name: found[:, column, 1] for column, name in enumerate(names)}
    changed = float(kl["activation"].max())
    if changed > UNCHANGED:
        raise ModelError(
            f"the activation itself, spliced in, changes the next token's distribution by {changed:.3g} nats: the "
            f"splice does not reproduce {subject.nla.base_model} at layer {subject.target.layer}"
        )
    types = token_types(subject.target.tokenizer, rows.tokens, rows.following.tolist())
    ordinary = torch.tensor([name not in TEMPLATE for name in types])
    known = ordinary & (rows.following >= 0)
    result: dict[str, Any] = {"n": int(ordinary.sum()), "n_loss": int(known.sum()), "vectors": {}}
    for name in names[:-1]:  # the clean pass is last
        result["vectors"][name] = {
            "kl": _mean(kl[name], ordinary, subject.resamples),
            "kl_share": _ratio(kl[name], kl["mean"], ordinary, subject.resamples),
            "loss_recovered": _ratio(loss["mean"] - loss[name], loss["mean"] - loss["clean"], known, subject.resamples),
        }
    result["by_token_type"] = _by_type(kl, types, subject.resamples)
    share = result["vectors"]["explanation"]["kl_share"]
    result["flags"] = []
    if share["value"] is not None and share["value"] > HALF:
        kept = f"{share['value']:.2f} of the mean's KL; at most {HALF} is wanted"
        result["flags"].append(f"the spliced reconstruction keeps {kept}")
    return result


def _vectors(subject: Subject) -> dict[str, Float[Tensor, "batch d_model"]]:
    """A vector for each row, by name; NaN for the clean pass, which is last."""
    rows, greedy = subject.rows, subject.greedy.prediction
    generator = torch.Generator().manual_seed(subject.seed)
    found = {"explanation": greedy}
    if "warm_start" in subject.variants:
        found["warm_start"] = subject.variants["warm_start"].prediction
    found["source_text"] = subject.source_text
    neighbour = _same_document(rows.document_id)
    found["same_document"] = greedy[neighbour]
    partner = other_document(rows.document, subject.seed)
    if partner is not None:
        found["shuffled"] = greedy[partner]
    mean = normalized_activations(rows.activation).mean(0, keepdim=True).float()
    found |= {
        "mean": mean.expand(len(rows), -1),
        "noise": torch.randn(rows.activation.shape, generator=generator),
        "zero": torch.zeros_like(rows.activation),
        "activation": rows.activation,
        "clean": torch.full_like(rows.activation, torch.nan),
    }
    return found


def _same_document(document: list[str]) -> list[int]:
    """For each row the next row of the same text, the first for the last one; itself if it is alone."""
    rows_of: dict[str, list[int]] = {}
    for index, name in enumerate(document):
        rows_of.setdefault(name, []).append(index)
    following = {index: group[(k + 1) % len(group)] for group in rows_of.values() for k, index in enumerate(group)}
    return [following[index] for index in range(len(document))]


def _row(subject: Subject, index: int, vectors: Float[Tensor, "variant d_model"]) -> Float[Tensor, "variant 2"]:
    """KL from the clean distribution, and the next token's loss, for each vector; the clean pass is last."""
    target, rows = subject.target, subject.rows
    tokens = torch.tensor(rows.tokens[index], device=target.device)
    logits, present = target.next_logits(tokens, vectors.to(target.device))
    activation = rows.activation[index].to(present)
    apart = float((present - activation).norm() / activation.norm())
    if apart > SAME:
        raise ModelError(
            f"row {index} ({rows.document_id[index]}): its context read again gives an activation {apart:.2f} of its "
            "norm away: the splice would be about another activation"
        )
    log_probs = logits.double().log_softmax(-1) if logits.device.type != "mps" else logits.log_softmax(-1)
    clean = log_probs[-1]
    kl = (clean.exp() * (clean - log_probs)).sum(-1).clamp_min(0)
    following = int(rows.following[index])
    loss = -log_probs[:, following] if following >= 0 else torch.zeros_like(kl)
    return torch.stack([kl, loss], 1).cpu().double()


def _mean(value: Float[Tensor, " batch"], mask: Bool[Tensor, " batch"], resamples: Resamples) -> dict[str, Any]:
    return _ratio(value, torch.ones_like(value), mask, resamples)


def _ratio(
    above: Float[Tensor, " batch"], below: Float[Tensor, " batch"], mask: Bool[Tensor, " batch"], resamples: Resamples
) -> dict[str, Any]:
    """`{value, ci95}` of a ratio of sums over the rows of `mask`; None if it is not defined."""
    total, resampled = resamples.sums(torch.stack([above, below], 1) * mask.unsqueeze(1))
    value = float(total[0] / total[1])
    if not torch.isfinite(torch.tensor(value)):
        return {"value": None, "ci95": None}
    return {"value": value, "ci95": resamples.interval(resampled[:, 0] / resampled[:, 1])}


def _by_type(kl: Mapping[str, Float[Tensor, " batch"]], types: list[str], resamples: Resamples) -> dict[str, Any]:
    """KL of the explanation and of the mean at each type of token."""
    found = {}
    for name in sorted(set(types)):
        mask = torch.tensor([kind == name for kind in types])
        found[name] = {
            "n": int(mask.sum()),
            "kl": _mean(kl["explanation"], mask, resamples),
            "kl_share": _ratio(kl["explanation"], kl["mean"], mask, resamples),
        }
    return found


def table(result: dict[str, Any]) -> Table:
    """KL and loss recovered of each vector, then by token type."""
    shown = Table(title="Spliced into the model in place of the activation", title_justify="left")
    for title in ("vector", "KL, nats", "95%", "share of the mean's KL", "95%", "loss recovered", "95%"):
        shown.add_column(title, justify="left" if title == "vector" else "right")
    for name, label in VECTORS.items():
        if name in result["vectors"]:
            figures = result["vectors"][name]
            shown.add_row(label, *_figures(figures, ("kl", "kl_share", "loss_recovered")))
    shown.add_section()
    for name, figures in result["by_token_type"].items():
        shown.add_row(f"at a {name} ({figures['n']})", *_figures(figures, ("kl", "kl_share")), "", "")
    return shown


def _figures(figures: dict[str, Any], keys: tuple[str, ...]) -> list[str]:
    return [text for key in keys for text in cells(figures[key]["value"], figures[key]["ci95"], "{:.3f}")]
