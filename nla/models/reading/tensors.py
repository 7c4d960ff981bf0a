"""Activations read by another library: which block's output are they, and do they suit this pair?

TransformerLens: `cache["resid_post", l]` is the output of block l, `resid_pre` of l that of block l - 1; with weight
processing (its default) each vector has its mean subtracted. nnsight: `model.model.layers[l].output`. Hugging Face:
`hidden_states[l + 1]`. Many tools count from 1. So the tensor is compared with the target's reading of the same text.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nla.core.records import Reading
from nla.errors import DataError
from nla.models.backbone import body, embed
from nla.models.prompts import token_ids
from nla.models.target import Target

TOLERANCE = 0.05  # relative difference up to which two readings are the same: another dtype or attention kernel


@dataclass(frozen=True, slots=True)
class HookMatch:
    """Which reading a tensor is. `block` -1: the embeddings; `shift`: its row i is the target's token i + shift."""

    block: int
    shift: int
    centered: bool  # each vector's mean over its width was subtracted
    difference: float  # relative, to the closest reading
    wanted: int  # the target's layer

    @property
    def right(self) -> bool:
        """Whether it is what the target reads, unchanged."""
        return self.difference <= TOLERANCE and self.block == self.wanted and not self.centered

    def __str__(self) -> str:
        name = "the embeddings" if self.block < 0 else f"the output of block {self.block}"
        if self.difference > TOLERANCE:
            return f"equals no block's output (closest: {name}, {self.difference:.0%} off): another model, text or hook"
        message = f"equals {name}" + (f", from token {self.shift} on" if self.shift else "")
        if self.block != self.wanted:
            off = self.block - self.wanted
            message += f"; the pair reads block {self.wanted}: hook {abs(off)} block{'s' if abs(off) > 1 else ''} "
            message += "later" if off < 0 else "earlier"
        if self.centered:
            message += (
                "; its mean was subtracted: load the model without weight processing (from_pretrained_no_processing)"
            )
        return message


def check_hook(target: Target, text: str, tensor: Tensor) -> HookMatch:
    """Compare `[time, d_model]` (or with a batch axis of 1) with the output of every block on `text`.

    The tokens may lack the target's first one (a BOS), or have one more before it. Raises DataError for a shape that
    does not fit.
    """
    given = _matrix(target, tensor)
    readings = _all_blocks(target, text)
    shifts = [shift for shift in (0, 1, -1) if _overlap(readings.shape[1], len(given), shift)]
    if not shifts:
        raise DataError(
            f"the tensor has {len(given)} tokens, the text {readings.shape[1]} with special ones: read the same text"
        )
    matches = []
    for shift in shifts:
        ours = readings[:, max(0, shift) : max(0, shift) + min(len(given), readings.shape[1])]
        theirs = given[max(0, -shift) :][: ours.shape[1]]
        for centered in (False, True):
            reference = ours - ours.mean(-1, keepdim=True) if centered else ours
            # per token, since the norm of a first token can be a hundred times that of the others
            off = (theirs - reference).norm(dim=-1) / reference.norm(dim=-1).clamp_min(1e-9)
            for block, difference in enumerate(off.median(dim=1).values.tolist(), start=-1):
                matches.append(HookMatch(block, shift, centered, difference, target.layer))
    return min(matches, key=lambda match: (match.difference > TOLERANCE, match.centered, match.difference))


def from_hook(target: Target, text: str, tensor: Tensor) -> Reading:
    """The tensor as a `Reading`, after a check that it is what the target reads. Raises DataError if it is not."""
    match = check_hook(target, text, tensor)
    if not match.right:
        raise DataError(f"the tensor {match}")
    given = _matrix(target, tensor)
    ids = token_ids(target.tokenizer, [text])[0]
    first = max(0, match.shift)
    rows = range(first, first + len(given) - max(0, -match.shift))
    reading = target.read_ids([ids], [list(rows)])
    return Reading(given[max(0, -match.shift) :], reading.text, reading.token, reading.document, reading.position)


def _matrix(target: Target, tensor: Tensor) -> Float[Tensor, "time d_model"]:
    given = tensor.detach().float().cpu()
    given = given[0] if given.ndim == 3 and len(given) == 1 else given
    if given.ndim != 2 or given.shape[1] != target.d_model:
        raise DataError(
            f"the tensor has shape {tuple(tensor.shape)}: expected [time, {target.d_model}], a row per token of a text"
        )
    return given


def _overlap(ours: int, theirs: int, shift: int) -> bool:
    return theirs == ours - shift if shift else theirs == ours


@torch.no_grad()
def _all_blocks(target: Target, text: str) -> Float[Tensor, "reading time d_model"]:
    """The embeddings and every block's output, at every token."""
    decoder = body(target.model)
    device = target.device
    tokens = torch.tensor(token_ids(target.tokenizer, [text]), device=device)
    time = tokens.shape[1]
    position = torch.arange(time, device=device)
    layers = list(range(int(decoder.config.num_hidden_layers)))
    blocks = target(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(position), position, layers)
    first = decoder(inputs_embeds=embed(decoder, tokens), use_cache=False, output_hidden_states=True).hidden_states[0]
    return torch.cat([first.float(), blocks.transpose(0, 1)]).cpu()
