"""Steering: what an edit of an explanation changes in the activation, added to the model that it was read from.

    direction = unit(AR(edited)) - unit(AR(original))        h' = h + scale * |h| * direction

where AR is the reconstructor, `unit` divides by the norm, and h is the output of block `layer` at one position, or at
every position from one on. Source: the released NLA code and the paper's steering by edited explanations.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from nla.core.objectives import normalize
from nla.errors import ConfigError, DataError
from nla.models.backbone import body, embed, head_logits, stop_ids
from nla.models.pair import NLA
from nla.models.prompts import pad_id
from nla.models.target import Target


def edit_direction(nla: NLA, original: list[str], edited: list[str]) -> Float[Tensor, "batch d_model"]:
    """`unit(AR(edited)) - unit(AR(original))`, one row for each pair of texts; of norm 0 (no change) to 2."""
    if len(original) != len(edited):
        raise DataError(f"{len(edited)} edited texts for {len(original)} originals: give one for each")
    return unit_difference(nla.reconstruct(edited), nla.reconstruct(original))


def unit_difference(
    edited: Float[Tensor, "batch d_model"], original: Float[Tensor, "batch d_model"]
) -> Float[Tensor, "batch d_model"]:
    """The direction between two predictions, whose norms are arbitrary."""
    return normalize(edited, 1.0) - normalize(original, 1.0)


def random_direction(direction: Float[Tensor, "batch d_model"], seed: int) -> Float[Tensor, "batch d_model"]:
    """Evenly distributed directions of the same norms: what a change of that size does that means nothing."""
    noise = torch.randn(direction.shape, generator=torch.Generator().manual_seed(seed)).to(direction.device)
    return normalize(noise, 1.0) * direction.norm(dim=-1, keepdim=True)


def replaced(text: str, old: str, new: str, count: int = 0) -> str:
    """The text with the word `old`, or several words, replaced at its first `count` places; 0: at all.

    Raises ConfigError if it does not occur.
    """
    edited, found = re.subn(rf"(?<!\w){re.escape(old)}(?!\w)", lambda _: new, text, count=count)
    if not found:
        raise ConfigError(f"{old!r} is no word of the explanation {text!r}: replace one that it has")
    return edited


def added(
    hidden: Float[Tensor, "document time d_model"],
    where: Bool[Tensor, "document time"],
    direction: Float[Tensor, "document d_model"],
    scale: float,
) -> Float[Tensor, "document time d_model"]:
    """`h + scale * |h| * direction` where `where` says so, in fp32; the rest as it is."""
    present = hidden.float()
    change = scale * present.norm(dim=-1, keepdim=True) * direction.to(hidden.device).float().unsqueeze(1)
    return torch.where(where.unsqueeze(-1), (present + change).to(hidden.dtype), hidden)


@torch.no_grad()
def steered_logits(
    target: Target,
    tokens: Int[Tensor, "document time"],
    position: Int[Tensor, " document"],
    direction: Float[Tensor, "document d_model"],
    scale: float = 1.0,
    onward: bool = False,
) -> Float[Tensor, "document time vocab"]:
    """Logits with the direction added at `position`, or with `onward` at every position from there on.

    Padding must be on the right, as in `Target.forward`.
    """
    slots = torch.arange(tokens.shape[1], device=tokens.device)
    position = position.to(tokens.device).unsqueeze(1)
    where = slots >= position if onward else slots == position
    with target.edited(lambda hidden: added(hidden, where, direction, scale)):
        return target.model(inputs_embeds=embed(body(target.model), tokens), use_cache=False).logits.float()


class SteeredPrompts:
    """Prompts of which what precedes the steered position is read once, for any number of directions.

    Each direction then costs the tokens from that position on. Left padded inside; the numbers are those of
    `steered_logits` up to rounding.

    Args:
        ids: token ids of each prompt.
        position: the first token that is steered, in each; None: the last one.
    """

    @torch.no_grad()
    def __init__(self, target: Target, ids: Sequence[Sequence[int]], position: Sequence[int] | None = None) -> None:
        position = [len(row) - 1 for row in ids] if position is None else position
        for index, (row, place) in enumerate(zip(ids, position, strict=True)):
            if not 0 <= place < len(row):
                raise DataError(f"position {place} of prompt {index}: it has {len(row)} tokens")
        self.target = target
        longest = max(map(len, ids))
        pad, device = pad_id(target.tokenizer), target.device
        self._tokens = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in ids], device=device)
        lengths = torch.tensor([len(row) for row in ids], device=device)
        slots = torch.arange(longest, device=device)
        self._visible = (slots >= (longest - lengths).unsqueeze(1)).long()
        self._slot = (longest - lengths + torch.tensor(list(position), device=device)).unsqueeze(1)
        self._first = int(self._slot.min())  # the first slot that any row's direction is added to
        # not by the config: layers with a sliding window would keep their last tokens alone
        self._cache = DynamicCache()
        if self._first:
            self._run(self._tokens[:, : self._first], self._visible[:, : self._first], None)

    @torch.no_grad()
    def next_logits(
        self, direction: Float[Tensor, "document d_model"] | None = None, scale: float = 1.0, onward: bool = False
    ) -> Float[Tensor, "document vocab"]:
        """Logits after each prompt; None: unsteered."""
        logits = self._prompt(direction, scale, onward)
        self._cache.crop(self._first - self._tokens.shape[1])
        return logits

    @torch.no_grad()
    def continuations(
        self,
        direction: Float[Tensor, "document d_model"] | None = None,
        scale: float = 1.0,
        *,
        tokens: int,
        onward: bool = False,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """What the model writes after each prompt, `tokens` tokens or up to its end of text; 0 is greedy.

        `onward`: the direction is also added at every token that is written. Samples of the same seed have the same
        random numbers, whatever the direction.
        """
        generator = torch.Generator().manual_seed(seed)
        stops = torch.tensor(sorted(stop_ids(self.target.model, self.target.tokenizer)), dtype=torch.long)
        logits, visible = self._prompt(direction, scale, onward), self._visible
        change = None if direction is None or not onward else _everywhere(direction, scale)
        written: list[Tensor] = []
        ended = torch.zeros(len(self._tokens), dtype=torch.bool)
        for step in range(tokens):
            chosen = _choose(logits.cpu(), temperature, generator)
            ended |= torch.isin(chosen, stops)
            written.append(torch.where(ended, -1, chosen))
            if bool(ended.all()) or step == tokens - 1:
                break
            visible = torch.cat([visible, torch.ones_like(visible[:, :1])], 1)
            logits = self._run(chosen.to(visible.device).unsqueeze(1), visible, change)
        self._cache.crop(self._first - visible.shape[1])
        rows = torch.stack(written, 1).tolist() if written else [[]] * len(ended)
        kept = [[token for token in row if token >= 0] for row in rows]
        return [str(text) for text in self.target.tokenizer.batch_decode(kept, skip_special_tokens=True)]

    def _prompt(self, direction: Tensor | None, scale: float, onward: bool) -> Float[Tensor, "document vocab"]:
        slots = torch.arange(self._first, self._tokens.shape[1], device=self._slot.device)
        where = slots >= self._slot if onward else slots == self._slot
        change = None if direction is None else lambda hidden: added(hidden, where, direction, scale)
        return self._run(self._tokens[:, self._first :], self._visible, change)

    def _run(
        self,
        tokens: Int[Tensor, "document time"],
        visible: Int[Tensor, "document seen"],
        change: Callable[[Tensor], Tensor] | None,
    ) -> Float[Tensor, "document vocab"]:
        """One forward pass after what the cache holds; logits at its last token."""
        position = (visible.cumsum(1) - 1).clamp_min(0)[:, -tokens.shape[1] :]
        model = self.target.model
        with nullcontext() if change is None else self.target.edited(change):
            hidden = body(model)(
                input_ids=tokens, attention_mask=visible, position_ids=position, past_key_values=self._cache
            ).last_hidden_state
        return head_logits(model, hidden[:, -1])


def _everywhere(direction: Tensor, scale: float) -> Callable[[Tensor], Tensor]:
    return lambda hidden: added(
        hidden, torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device), direction, scale
    )


def _choose(
    logits: Float[Tensor, "document vocab"], temperature: float, generator: torch.Generator
) -> Int[Tensor, " document"]:
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator).squeeze(1)
