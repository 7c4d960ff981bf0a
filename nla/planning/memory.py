"""Bytes on the fullest GPU, by phase of a step: what the stages hold (docs/guides/planning.md has each formula).

read + sample   weights, states and the gradients of the step before; cache and buffers of the rollout
update          activations of one micro-batch, up to the first backward pass
step            activations are gone; the optimizer's scratch
"""

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Literal

from nla.planning.shapes import Block, Shape, Size
from nla.planning.work import Pass

Strategy = Literal["single", "ddp", "fsdp"]
LOGITS = 3  # fp32 copies at the peak of a backward pass: log-softmax, its gradient, that of the logits
CHOOSING = 4  # fp32 copies while a token is drawn: logits, shifted, probabilities, their sum


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes per GPU in one phase."""

    weights: float = 0
    gradients: float = 0
    optimizer: float = 0
    activations: float = 0
    cache: float = 0
    buffers: float = 0

    @property
    def total(self) -> float:
        return sum(astuple(self))


@dataclass(frozen=True, slots=True)
class Layout:
    """How a run is laid out on its GPUs.

    Args:
        weight: bytes of a stored weight (`model.dtype`). compute: bytes of a number in a matrix product.
        checkpointing: blocks keep their input only and run again in the backward pass.
        frozen: bytes of a weight of an adapter's base, where it is stored in fewer than `weight`.
        fused: on GPUs: the optimizer works on all tensors at once and needs scratch of their size, and kernels are
            launched while others run.
    """

    gpus: int = 1
    strategy: Strategy = "single"
    weight: int = 4
    compute: int = 2
    checkpointing: bool = False
    fused: bool = True
    frozen: float | None = None

    @property
    def shards(self) -> int:
        return self.gpus if self.strategy == "fsdp" else 1

    @property
    def autocast(self) -> bool:
        """Weights are cast for each pass, and the casts live until its backward pass; FSDP2 gathers them cast."""
        return self.compute < self.weight and self.strategy != "fsdp"

    @property
    def stream(self) -> int:
        """Bytes of a number of the residual stream."""
        return self.weight if self.autocast else self.compute


def count(tensors: Iterable[Size]) -> int:
    return sum(map(math.prod, tensors))


def matrices(block: Block) -> int:
    return count(size for size in block.tensors if len(size) > 1)


def optimizer_bytes(tensors: Iterable[Size], inner: Iterable[Size], weight: int, muon: bool) -> float:
    """AdamW: two states of the weight's type; Muon: one, for the `inner` matrices among the tensors."""
    return weight * (2 * count(tensors) - (count(inner) if muon else 0))


def saved_per_token(block: Block, layout: Layout, work: Pass, adapter: bool = False) -> float:
    """Bytes that autograd keeps of one token in one block."""
    d, q, k, c, s = block.width, block.query, block.key, layout.compute, layout.stream
    mixed = layout.autocast
    in_norms = min(block.stream_norms, 2)
    if block.rms:  # the input in fp32, what was normed (for the weight's gradient), the output once per cast
        normed = 0 if adapter else (4 if block.fp32_norms else s)
        norms = block.stream_norms * d * (4 + normed)
        heads = (q + k) * (4 + (0 if adapter else 4 if block.fp32_norms else c)) if block.head_norms else 0
    else:
        norms, heads = block.stream_norms * d * s, 0
    inputs = c * d * (block.readers if mixed else in_norms)
    masked = work.masked or (block.window is not None and work.length > block.window)
    wide = q if masked or block.eager else k  # repeated for each head
    attention = c * (2 * q + 2 * wide) + 4 * block.heads
    if block.eager:
        attention += block.heads * work.length * (4 + c + (c if mixed else 0))
    elif masked:
        attention += c * work.length
    products = 4 if block.gated else 5  # gelu in steps
    mlp = c * products * block.mlp
    mlp += c * 3 * d * block.chosen  # each expert gets a copy of its tokens
    return norms + heads + inputs + attention + mlp


def activations(shape: Shape, layout: Layout, work: Pass, adapter: bool = False, head: bool = True) -> float:
    """Bytes of one micro-batch at the peak: what all blocks keep, the logits, and a block's own scratch."""
    per_block = [saved_per_token(block, layout, work, adapter) * work.tokens for block in shape.blocks]
    kept = sum(per_block)
    if layout.checkpointing:
        kept = len(per_block) * shape.d_model * layout.stream * work.tokens + max(per_block, default=0)
    logits = LOGITS * 4 * shape.vocab * work.asked if head else 0
    outer = 3 * shape.d_model * layout.stream * work.tokens  # embeddings, final norm
    casts = sum(matrices(block) for block in shape.blocks) + (shape.d_model * shape.vocab if head else 0)
    return kept + logits + outer + (layout.compute * casts if layout.autocast else 0)


def gathered(shape: Shape, layout: Layout, training: bool, whole: bool = False) -> float:
    """Under FSDP2: the root and two blocks (one in use, one on its way), or all; gradients of a block before they are
    reduced, in fp32 too."""
    if layout.strategy != "fsdp":
        return 0
    largest = max((block.parameters for block in shape.blocks), default=0)
    root = shape.root()
    if whole:
        return layout.compute * (root + sum(block.parameters for block in shape.blocks))
    reduced = (layout.compute + 4) * max(largest, root) if training else 0
    return layout.compute * (root + 2 * largest) + reduced


def cache(
    shape: Shape, layout: Layout, samples: float, activations_: float, prompt: int, shared: int, cap: int
) -> float:
    """Keys and values of the rollout: own tokens per sample, prompts per activation, the shared part once."""
    places = samples * cap + activations_ * (prompt - shared) + shared
    # under autocast, rotated keys come out in the residual stream's type
    return sum(block.key * (layout.stream + layout.compute) for block in shape.blocks) * places


def rollout_buffers(shape: Shape, layout: Layout, samples: float, cap: int) -> float:
    """Logits of one decode step and what drawing makes of them; tokens, log-probs, random numbers, masks."""
    return samples * (shape.vocab * (CHOOSING * 4 + layout.compute) + cap * (8 + 4 + 4 + 1))
