"""Records that modules pass to each other: frozen, with shapes, each with its own `.to(device)`.

Axes: `batch` activations, `sample = batch * group` explanations (a group's samples contiguous), `time` tokens.
Lightning moves a frozen record only if it has `.to`.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from nla.errors import ConfigError

Device = torch.device | str | int
R = TypeVar("R", bound="Record")


def well_formed(texts: Sequence[str | None], device: Device | None = None) -> Bool[Tensor, " sample"]:
    """False if an explanation is None: malformed, or cut off by the length cap."""
    return torch.tensor([text is not None for text in texts], dtype=torch.bool, device=device)


class Record:
    """Gives a frozen dataclass of tensors its `.to(device)`."""

    __slots__ = ()

    def to(self: R, device: Device) -> R:
        moved = {}
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                moved[field.name] = value.to(device, non_blocking=True)
            elif isinstance(value, Record):
                moved[field.name] = value.to(device)
        return dataclasses.replace(self, **moved)  # pyright: ignore[reportArgumentType, reportReturnType, reportType]


@dataclass(frozen=True, slots=True)
class TokenBatch(Record):
    """Documents, right padded, with the positions to read in them."""

    tokens: Int[Tensor, "document time"]
    mask: Bool[Tensor, "document time"]
    row: Int[Tensor, " batch"]  # which document each position belongs to
    position: Int[Tensor, " batch"]  # token index within that document
    document: list[str]
    text: list[str]  # context up to and including the token at `position`
    explanation: list[str] | None  # warm-start text, without tags
    padding: bool = False  # another rank's rows, run only to keep the ranks in step; not counted

    def __len__(self) -> int:
        return len(self.document)


@dataclass(frozen=True, slots=True)
class ActivationBatch(Record):
    """Raw residual-stream vectors after block `layer`, with their origin."""

    activation: Float[Tensor, "batch d_model"]
    document: list[str]
    position: Int[Tensor, " batch"]
    text: list[str]
    explanation: list[str] | None
    padding: bool = False

    def __len__(self) -> int:
        return len(self.document)

    def split(self, size: int) -> Iterator["ActivationBatch"]:
        """Micro-batches of at most `size` rows."""
        return self.parts(-(-len(self) // size))

    def parts(self, parts: int) -> Iterator["ActivationBatch"]:
        """`parts` micro-batches of nearly equal size."""
        for index in range(parts):
            rows = slice(index * len(self) // parts, (index + 1) * len(self) // parts)
            explanation = None if self.explanation is None else self.explanation[rows]
            yield ActivationBatch(
                self.activation[rows], self.document[rows], self.position[rows], self.text[rows], explanation
            )


@dataclass(frozen=True, slots=True)
class Completions(Record):
    """Sampled explanations. `mask` is True up to and including the first stop token."""

    tokens: Int[Tensor, "sample time"]
    mask: Bool[Tensor, "sample time"]
    explanation: list[str | None]  # None: malformed, or cut off by the length cap
    log_probs: Float[Tensor, "sample time"] | None = None  # as sampled, from raw logits

    @property
    def well_formed(self) -> Bool[Tensor, " sample"]:
        return well_formed(self.explanation, self.tokens.device)

    def __len__(self) -> int:
        return len(self.explanation)

    @classmethod
    def join(cls, parts: Sequence["Completions"], pad_id: int) -> "Completions":
        """Concatenate, padded to the longest."""
        time = max(part.tokens.shape[1] for part in parts)

        def joined(tensors: Sequence[Tensor], fill: float) -> Tensor:
            return torch.cat([pad(tensor, (0, time - tensor.shape[1]), value=fill) for tensor in tensors])

        log_probs = [part.log_probs for part in parts if part.log_probs is not None]
        return cls(
            joined([part.tokens for part in parts], pad_id),
            joined([part.mask for part in parts], False),
            [text for part in parts for text in part.explanation],
            joined(log_probs, 0.0) if len(log_probs) == len(parts) else None,
        )

    def cut(self, samples: slice) -> "Completions":
        """The given samples."""
        log_probs = None if self.log_probs is None else self.log_probs[samples]
        return Completions(self.tokens[samples], self.mask[samples], self.explanation[samples], log_probs)


@dataclass(frozen=True, slots=True)
class Rollout(Record):
    """Activations with a group of sampled explanations each; a group's samples are contiguous."""

    activation: Float[Tensor, "batch d_model"]
    group: int
    completions: Completions
    reading: list[str] | None = None  # what the reconstructor reads of each explanation; None: all of it
    reference: Float[Tensor, "sample time"] | None = None  # the KL reference's log-probs of the tokens

    @property
    def texts(self) -> list[str]:
        """What the reconstructor reads; empty for a malformed explanation."""
        return [text or "" for text in self.completions.explanation] if self.reading is None else self.reading

    def split(self, size: int) -> Iterator["Rollout"]:
        """Micro-batches of at most `size` samples, always whole groups.

        Raises ConfigError if not even one group fits.
        """
        groups = size // self.group
        if groups < 1:
            raise ConfigError(
                f"micro-batch of {size} samples holds no whole group of {self.group}: "
                f"use a micro-batch of at least {self.group} samples"
            )
        for first in range(0, len(self.activation), groups):
            samples = slice(first * self.group, (first + groups) * self.group)
            activation = self.activation[first : first + groups]
            reading = None if self.reading is None else self.reading[samples]
            reference = None if self.reference is None else self.reference[samples]
            yield Rollout(activation, self.group, self.completions.cut(samples), reading, reference)


@dataclass(frozen=True, slots=True)
class Reading(Record):
    """Activations read from texts, one row per position."""

    activation: Float[Tensor, "batch d_model"]
    text: list[str]  # context up to and including the token
    token: list[str]
    document: list[int]  # index of the text
    position: list[int]

    def __len__(self) -> int:
        return len(self.text)


@dataclass(frozen=True, slots=True)
class Score(Record):
    """How well explanations reconstruct their activations: error in [0, 4] at scale sqrt(d), 2 = orthogonal."""

    error: Float[Tensor, " batch"]
    cosine: Float[Tensor, " batch"]
