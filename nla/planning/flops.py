"""Arithmetic of a pass: a multiplication and an addition are 2 FLOPs, as torch's FlopCounterMode counts them.

forward   2 active tokens + 4 query pairs     per block, and 2 d_model vocab asked for the head
backward  twice the matrices (once where the weights are frozen), 2.5 times fused attention, which computes its
          scores again, twice the plain one
"""

from nla.planning.shapes import Block, Shape
from nla.planning.work import Pass


def forward(shape: Shape, work: Pass, rank: int | None = None) -> float:
    """FLOPs of one forward pass, with adapters of this rank."""
    linear, attention = _parts(shape, work)
    return linear + attention + _adapters(shape, work, rank)


def backward(shape: Shape, work: Pass, rank: int | None = None, recompute: bool = False) -> float:
    """FLOPs of its backward pass: of all weights, or of adapters of this rank on frozen weights.

    `recompute`: activation checkpointing, which runs the blocks forward once more.
    """
    linear, attention = _parts(shape, work)
    again = forward(shape, Pass(work.tokens, work.pairs), rank) if recompute else 0.0
    factor = 2 if shape.blocks and shape.blocks[0].eager else 2.5
    if rank is None:
        return 2 * linear + factor * attention + again
    # the first block's readers get embeddings, which need no gradient
    spared = 2 * work.tokens * _readers(shape.blocks[0]) if shape.blocks else 0
    return linear - spared + factor * attention + 2 * _adapters(shape, work, rank) + again


def _parts(shape: Shape, work: Pass) -> tuple[float, float]:
    linear = (
        sum(2 * block.active * work.tokens for block in shape.blocks) + 2 * shape.d_model * shape.vocab * work.asked
    )
    return linear, sum(4 * block.query * work.pairs for block in shape.blocks)


def _adapters(shape: Shape, work: Pass, rank: int | None) -> float:
    sides = sum(inside + outside for block in shape.blocks for inside, outside in block.linear)
    sides += sum(b.chosen * n * (i + o) for b in shape.blocks for _, i, o, n in b.stacks)
    return 2.0 * (rank or 0) * sides * work.tokens


def _readers(block: Block) -> int:
    """Matrix entries of queries, keys and values."""
    return next(inside for inside, _ in block.linear) * (block.query + 2 * block.key) if block.linear else 0
