"""The rows of one split, documents or stored activations, from which a loader makes its batches."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from nla.core.records import ActivationBatch, TokenBatch


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows of a source to load, and in which order.

    Args:
        split: such as `warm_start`.
        shuffled: endless, in a new seeded order each epoch, every row once per epoch; otherwise as stored.
        explanations: load only rows that have a warm-start text, and that text.
        documents: number of documents, chosen by a hash of their ids; None: all.
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
        """For the log: the number of rows, and what was left out."""
        ...

    def __len__(self) -> int: ...

    def batch(self, start: int, size: int) -> TokenBatch | ActivationBatch:
        """`size` rows from `start` on; past the end the next epoch begins."""
        ...

    def fingerprint(self) -> int:
        """Changes with the rows or their order, since a place in other rows means nothing."""
        ...


@runtime_checkable
class RowReader(Protocol):
    """Makes the rows of a split: `DocumentReader`, `ShardReader`."""

    @property
    def source(self) -> object:
        """Where the rows come from; may know more of its texts (`nla.data.source`)."""
        ...

    def __call__(self, selection: Selection) -> Rows:
        """Raises DataError if the selection is empty."""
        ...
