"""Interpolated n-gram models, the yardstick that a small language model has to beat."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nla.errors import DataError


class NGrams:
    """Witten-Bell interpolation: `p_n(w|h) = (c(hw) + T(h) p_{n-1}(w|h')) / (c(h) + T(h))`.

    `T(h)` is the number of different tokens seen after the history `h` and `h'` is `h` without its oldest
    token; an unseen history falls back to the shorter one; `p_1` is add-one. Nothing is tuned. A document begins
    after boundary tokens, and its first token is never predicted, as with the language model it is compared with.
    """

    def __init__(self, rows: Sequence[Sequence[int]], vocab: int, order: int) -> None:
        self.vocab, self.order = vocab, order
        if (vocab + 1) ** order >= 2**63:
            raise DataError(f"{order}-grams over {vocab} tokens do not fit 63 bits: use a smaller order")
        windows = self._windows(rows)
        if not len(windows):
            raise DataError("no document of two tokens or more to count n-grams in")
        self._grams: list[tuple[Tensor, Tensor]] = []  # per order: sorted keys and their counts
        self._histories: list[tuple[Tensor, Tensor, Tensor]] = []  # per order: keys, count, different continuations
        for n in range(1, order + 1):
            keys, counts = self._key(windows[:, -n:]).unique(return_counts=True)
            self._grams.append((keys, counts))
            histories, inverse = (keys // (vocab + 1)).unique(return_inverse=True)
            total = torch.zeros(len(histories), dtype=torch.long).index_add_(0, inverse, counts)
            self._histories.append((histories, total, torch.bincount(inverse)))

    def probabilities(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, "order token"]:
        """Probability of every token after the first of its row, under the models of order 1, 2, ... (float64)."""
        windows = self._windows(rows)
        seen = _lookup(*self._grams[0], self._key(windows[:, -1:]))
        by_order = [(seen + 1.0) / (self._grams[0][1].sum() + self.vocab)]
        for n in range(2, self.order + 1):
            key = self._key(windows[:, -n:])
            histories, total, kinds = self._histories[n - 1]
            history = key // (self.vocab + 1)
            count, different = _lookup(histories, total, history), _lookup(histories, kinds, history)
            mixed = (_lookup(*self._grams[n - 1], key) + different * by_order[-1]) / (count + different).clamp_min(1.0)
            by_order.append(torch.where(count > 0, mixed, by_order[-1]))
        return torch.stack(by_order)

    def _windows(self, rows: Sequence[Sequence[int]]) -> Int[Tensor, "token order"]:
        """Each token after the first of its row with the `order - 1` tokens before it."""
        boundary = [self.vocab] * (self.order - 1)
        flat = torch.tensor([token for row in rows for token in (*boundary, *row)], dtype=torch.long)
        inside: Bool[Tensor, " token"] = torch.tensor(
            [index > 0 for row in rows for index in (*[0] * len(boundary), *range(len(row)))], dtype=torch.bool
        )
        if len(flat) < self.order:
            return torch.zeros(0, self.order, dtype=torch.long)
        return flat.unfold(0, self.order, 1)[inside[self.order - 1 :]]

    def _key(self, grams: Int[Tensor, "token order"]) -> Int[Tensor, " token"]:
        key = torch.zeros(len(grams), dtype=torch.long)
        for column in grams.unbind(1):
            key = key * (self.vocab + 1) + column
        return key


def _lookup(keys: Tensor, values: Tensor, wanted: Int[Tensor, " token"]) -> Float[Tensor, " token"]:
    """`values` at the sorted `keys`, 0 where a key is missing."""
    index = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
    return (values[index] * (keys[index] == wanted)).double()
