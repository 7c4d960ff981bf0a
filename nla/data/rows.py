"""What a loader cuts its batches from: the rows of one split, documents or stored activations."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from nla.core.records import ActivationBatch, TokenBatch


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows of a source, and in which order.

    Args:
        split: such as `warm_start`.
        shuffled: endless, in a new seeded order each epoch, every row once per epoch; otherwise as stored.
        explanations: only rows that have a warm-start text, and the text with them.
        documents: as many documents, a choice keyed by their ids; None: all.
        seed: of the order and of the choice of warm-start texts.
    """

    split: str
    shuffled: bool
    explanations: bool
    documents: int | None
    seed: int


@runtime_checkable
class Rows(Protocol):
    @property
    def unit(self) -> int:
        """Positions in each row."""
        ...

    @property
    def description(self) -> str:
        """For the log: how many rows there are, and what was left out."""
        ...

    def __len__(self) -> int: ...

    def batch(self, start: int, size: int) -> TokenBatch | ActivationBatch:
        """`size` rows from `start` on; past the end the next epoch begins."""
        ...

    def fingerprint(self) -> int:
        """Changes with the rows or their order: a place in other rows means nothing."""
        ...


@runtime_checkable
class RowReader(Protocol):
    """What makes the rows of a split: `DocumentReader`, `ShardReader`."""

    def __call__(self, selection: Selection) -> Rows:
        """Raises DataError where the selection is empty."""
        ...
