"""Attention over shared prefixes: keys and values that samples share are stored once and multiplied once.

Registered under `SHARED` through transformers' public AttentionInterface; a model is switched to it while it samples
and back afterwards. The prefixes reach it as an extra keyword argument of the model's forward, so no model is changed.
The scores of prefixes and of a row's own tokens pass through one softmax, which equals merging their partial softmaxes
by log-sum-exp.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

SHARED = "nla_shared_prefix"


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys and values that come before a row's own, per block: `[part kv_heads time head_dim]`.

    `part` is 1 if all rows share them, else the number of activations. `slot` then is the index of each row among all
    `part * group` samples (rows that have ended are removed from the batch, not from their group).
    """

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    group: int = 1
    slot: Int[Tensor, " row"] | None = None

    @property
    def time(self) -> int:
        return self.keys[0].shape[2]

    def at(self, slot: Int[Tensor, " row"]) -> "Prefix":
        return replace(self, slot=slot)

    def scores(self, block: int, query: Float[Tensor, "row kv_heads some head_dim"]) -> Tensor:
        """`q k^T`, the samples of one part as one matrix: [row kv_heads some time]."""
        return self._each(query, self.keys[block].transpose(-1, -2))

    def mix(self, block: int, weight: Float[Tensor, "row kv_heads some time"]) -> Tensor:
        """The values, weighted: [row kv_heads some head_dim]."""
        return self._each(weight, self.values[block])

    def _each(self, left: Tensor, right: Tensor) -> Tensor:
        rows, heads, some, inner = left.shape
        count, slots = len(right), len(right) * self.group
        if count > 1 and rows != slots:  # rows have ended: their slots stay empty
            spread = left.new_zeros(slots, heads, some, inner)
            spread[self.slot] = left
            return self._each(spread, right)[self.slot]
        grouped = left.view(count, -1, heads, some, inner).transpose(1, 2).reshape(count, heads, -1, inner)
        product = grouped @ right
        return product.view(count, heads, -1, some, right.shape[-1]).transpose(1, 2).reshape(rows, heads, some, -1)


def attention(
    module: nn.Module,
    query: Float[Tensor, "row heads new head_dim"],
    key: Float[Tensor, "row kv_heads own head_dim"],
    value: Float[Tensor, "row kv_heads own head_dim"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    prefixes: Sequence[Prefix] = (),
    place: Int[Tensor, " new"] | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "row new heads head_dim"], None]:
    """Causal attention of the newest tokens to the prefixes and to the row's own tokens so far.

    Heads that share keys form one matrix; keys are not copied. The softmax is in fp32. `place` is the index of the
    newest tokens among a row's own if `key` is a buffer that is not full yet.
    """
    rows, heads, new, size = query.shape
    kv_heads, own = key.shape[1], key.shape[2]
    block: Any = module.layer_idx
    grouped = query.reshape(rows, kv_heads, heads // kv_heads * new, size)
    scores = [prefix.scores(block, grouped) for prefix in prefixes]
    scores.append(grouped @ key.transpose(-1, -2))
    joint = torch.cat(scores, -1).float() * (size**-0.5 if scaling is None else scaling)
    if softcap is not None:
        joint = softcap * torch.tanh(joint / softcap)
    total = joint.shape[-1]
    if place is not None or new > 1 or (sliding_window is not None and total > sliding_window):
        last = torch.arange(own - new, own, device=joint.device) if place is None else place
        hidden = _hidden(last + total - own, total, sliding_window)
        joint = joint.view(rows, kv_heads, -1, new, total).masked_fill(hidden, -torch.inf).view(joint.shape)
    weight = joint.softmax(-1).to(value.dtype)
    *prefix_weights, own_weight = weight.split([*(prefix.time for prefix in prefixes), own], -1)
    mixed = own_weight @ value
    for prefix, prefix_weight in zip(prefixes, prefix_weights, strict=True):
        mixed = mixed + prefix.mix(block, prefix_weight)
    return mixed.view(rows, heads, new, size).transpose(1, 2), None


def _hidden(position: Int[Tensor, " new"], total: int, window: int | None) -> Tensor:
    """True where the newest tokens must not look: ahead of themselves, or further back than the window."""
    behind = position.unsqueeze(1) - torch.arange(total, device=position.device)
    return (behind < 0) if window is None else (behind < 0) | (behind >= window)


AttentionInterface.register(SHARED, attention)


@contextmanager
def shared_attention(decoder: PreTrainedModel) -> Iterator[None]:
    """The decoder uses `attention` inside the context."""
    usual: Any = decoder.config._attn_implementation
    decoder.set_attn_implementation(SHARED)
    try:
        yield
    finally:
        decoder.set_attn_implementation(usual)


class StaticCacheLayer(CacheLayerMixin):
    """Keys and values of one block in buffers of their final size, filled in place instead of copied at each token.

    Returns what is filled so far; with `place`, a tensor of the next token's index, the whole buffers, so that every
    step has the same shapes and can be recorded.
    """

    is_sliding = False  # `attention` handles windows

    def __init__(self, size: int, before: int, place: Int[Tensor, " 1"] | None) -> None:
        super().__init__()
        self.size, self.before, self.place, self.time = size, before, place, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = self._buffer(key_states), self._buffer(value_states)
        self.is_initialized = True

    def _buffer(self, states: Float[Tensor, "row kv_heads new head_dim"]) -> Tensor:
        """One buffer each for keys and values, since autocast may give them different types."""
        shape = (*states.shape[:2], self.size, states.shape[3])
        # zeros if the whole buffer is used: a weight of 0 times a stray NaN would be NaN
        return states.new_empty(shape) if self.place is None else states.new_zeros(shape)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        if self.place is not None:
            self.keys.index_copy_(2, self.place, key_states)
            self.values.index_copy_(2, self.place, value_states)
            return self.keys, self.values
        end = self.time + key_states.shape[2]
        self.keys[:, :, self.time : end] = key_states
        self.values[:, :, self.time : end] = value_states
        self.time = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def change(self, rows: Int[Tensor, " kept"] | slice, size: int) -> None:
        """Keep only these rows, in buffers of this size."""
        used = self.time if self.place is None else min(size, self.size)
        for name in ("keys", "values"):
            kept: Any = getattr(self, name)[rows, :, :used]
            new = kept.new_zeros(*kept.shape[:2], size, kept.shape[3])
            new[:, :, :used] = kept
            setattr(self, name, new)
        self.size = size

    def get_seq_length(self) -> int:
        return self.before + self.time

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return self.before + self.size


class StaticCache(Cache):
    """One `StaticCacheLayer` for each block; `before` tokens are in the prefixes."""

    def __init__(self, blocks: int, size: int, before: int = 0, place: Int[Tensor, " 1"] | None = None) -> None:
        super().__init__(layers=[StaticCacheLayer(size, before, place) for _ in range(blocks)])
        self.size, self.place = size, place

    def change(self, rows: Int[Tensor, " kept"] | slice, size: int) -> None:
        """Keep only these rows, in buffers of this size."""
        self.size, layers = size, cast(list[StaticCacheLayer], self.layers)
        for layer in layers:
            if layer.is_initialized:
                layer.change(rows, size)
            else:
                layer.size = size

    def as_prefix(self, group: int = 1) -> Prefix:
        """What is filled so far, for later rows."""
        layers: Any = self.layers
        return Prefix(
            [layer.keys[:, :, : layer.time] for layer in layers],
            [layer.values[:, :, : layer.time] for layer in layers],
            group,
        )
