"""The reward of a sampled explanation, the KL to the reference, and what the reconstructor reads of an explanation.

A reward is minus the error (or its logarithm) less penalties on the form of the text. Each term is a pure function of a
group's samples, so micro-batches and ranks change nothing.

Sources: length penalties, random prefixes and quotations: replications of the method (docs/method.md); the linear
penalty before the cap: DAPO (Yu 2025), "overlong reward shaping"; k1, k2, k3: Schulman 2020.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nla.core.objectives import AdvantageKind, KLKind, RewardKind, reward
from nla.core.records import Completions
from nla.core.schedule import ScheduleKind, interpolated
from nla.errors import ConfigError
from nla.models.explanations import prefixes, without_quotes
from nla.models.prompts import token_ids

Reads = Literal["whole", "random_prefix", "without_quotes"]


@dataclass(frozen=True, slots=True)
class Reward:
    """The reward of a sample, and its comparison within the group.

    Args:
        kind: `neg_error` or `neg_log_error` of the reconstruction.
        advantage: the group's baseline, see `group_advantages`.
        reads: what the reconstructor reads, for the reward and for its own training: the whole explanation, its first
            tokens (a random number, the same for a whole group), or the explanation without its quotations.
        per_token: penalty for each token of the answer, tags and stop token included.
        near_cap: penalty of an answer as long as the cap; falls linearly to 0 at `near_cap_tokens` below the cap.
        repetition: penalty times the share of runs of `repetition_tokens` tokens that occurred in the answer before.
    """

    kind: RewardKind
    advantage: AdvantageKind
    reads: Reads
    per_token: float
    near_cap: float
    near_cap_tokens: int
    repetition: float
    repetition_tokens: int

    def __post_init__(self) -> None:
        for name, least in {"per_token": 0, "near_cap": 0, "repetition": 0}.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise ConfigError(
                    f"reward.{name}={value}: a penalty must be 0 or more; it is subtracted from the reward"
                )
        for name in ("near_cap_tokens", "repetition_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"reward.{name}={getattr(self, name)}: must be at least 1")

    def __call__(
        self,
        error: Float[Tensor, " sample"],
        orthogonal: Float[Tensor, " sample"],
        completions: Completions,
        cap: int,
    ) -> Float[Tensor, " sample"]:
        """The reward of each sample, without gradient; `cap` is the largest number of tokens of an answer.

        A malformed sample has the error of an orthogonal vector. Penalties apply to all samples alike: if malformed
        ones were exempt, a large penalty would teach the policy to write them.
        """
        earned = reward(error, completions.well_formed, orthogonal, self.kind)
        lengths = completions.mask.sum(1).float()
        if self.per_token:
            earned = earned - self.per_token * lengths
        if self.near_cap:
            earned = earned - self.near_cap * hinge(lengths, cap, self.near_cap_tokens)
        if self.repetition:
            repeated, runs = repeated_runs(completions.tokens, completions.mask, self.repetition_tokens)
            earned = earned - self.repetition * repeated / runs.clamp_min(1)
        return earned

    def reading(
        self, completions: Completions, group: int, tokenizer: PreTrainedTokenizerBase, key: int, first: int = 0
    ) -> list[str] | None:
        """What the reconstructor reads of each sample, "" for a malformed one; None means whole explanations.

        Random numbers are keyed by `key` and by the activation's index over all ranks, counted from `first`.
        """
        if self.reads == "whole":
            return None
        texts = [text or "" for text in completions.explanation]
        if self.reads == "without_quotes":
            return [without_quotes(text) for text in texts]
        ids = token_ids(tokenizer, texts, special=False)
        return prefixes(tokenizer, texts, prefix_lengths([len(row) for row in ids], group, key, first))


@dataclass(frozen=True, slots=True)
class KLToReference:
    """KL to the reference, the warm-start verbalizer: in the loss (k3, k2), or as k1 in the reward; skipped at 0.

    `schedule`: the coefficient is constant, or moves from `coefficient` to `final` over the stage, linearly or along
    half a cosine.
    """

    coefficient: float
    kind: KLKind | Literal["reward"]
    clamp: float
    schedule: ScheduleKind
    final: float

    def __post_init__(self) -> None:
        for name in ("coefficient", "final"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigError(f"kl.{name}={getattr(self, name)}: must be 0 or more")

    @property
    def needs_reference(self) -> bool:
        """Whether the KL ever has a coefficient above 0."""
        return self.coefficient > 0 or (self.schedule != "constant" and self.final > 0)

    def at(self, progress: float) -> float:
        """The coefficient at `progress`, the share of the stage's steps that is done."""
        return interpolated(self.coefficient, self.final, progress, self.schedule)


def hinge(lengths: Float[Tensor, " sample"], cap: int, margin: int) -> Float[Tensor, " sample"]:
    """0 up to `cap - margin` tokens, then linear to 1 at the cap."""
    return ((lengths - (cap - margin)) / margin).clamp(0, 1)


def repeated_runs(
    tokens: Int[Tensor, "sample time"], mask: Bool[Tensor, "sample time"], width: int = 4
) -> tuple[Int[Tensor, " sample"], Int[Tensor, " sample"]]:
    """Per sample, the number of runs of `width` tokens that repeat an earlier run, and the number of all runs.

    In ordinary text nearly none repeat; in the text of a policy that has fallen into a loop, nearly all do.
    """
    if tokens.shape[1] < width:
        none = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
        return none, none
    runs = tokens.unfold(1, width, 1)
    inside = mask.unfold(1, width, 1).all(-1)
    keys = torch.zeros_like(runs[..., 0])
    for offset in range(width):  # a hash that wraps around: two different runs collide with a chance of 2^-60
        keys = keys * 6364136223846793005 + runs[..., offset] + 1
    fillers = -1 - torch.arange(keys.shape[1], device=keys.device).expand_as(keys)  # unique keys for runs outside
    ordered = torch.where(inside, keys, fillers).sort(1).values
    return (ordered[:, 1:] == ordered[:, :-1]).sum(1), inside.sum(1)


def prefix_lengths(lengths: Sequence[int], group: int, key: int, first: int = 0) -> list[int]:
    """Number of tokens read of each sample: one number per group, uniform from 1 to the group's longest sample.

    All samples of a group share it, so that none has an advantage. It is absolute, because with a share of the text a
    verbalizer would show more by writing more.
    """
    chosen: list[int] = []
    for start in range(0, len(lengths), group):
        rng = random.Random(f"prefix/{key}/{first + start // group}")
        chosen += [rng.randint(1, max(1, *lengths[start : start + group]))] * group
    return chosen
