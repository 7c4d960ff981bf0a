"""Rows of unequal length as one tensor, and batches of items of similar length, which need little padding."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def padded(rows: Sequence[Sequence[int]], fill: int) -> tuple[Int[Tensor, "row time"], Bool[Tensor, "row time"]]:
    """Token ids, right padded with `fill` to the longest row, and the mask that is True on the rows' own tokens."""
    lengths = torch.tensor([len(row) for row in rows])
    longest = int(lengths.max())
    tokens = torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows], dtype=torch.long)
    return tokens, torch.arange(longest) < lengths.unsqueeze(1)


def length_buckets(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Indices of `lengths` in batches of at most `tokens` with padding (or of a single item), shortest first."""
    buckets: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not buckets or (len(buckets[-1]) + 1) * lengths[index] > tokens:
            buckets.append([])
        buckets[-1].append(index)
    return buckets
