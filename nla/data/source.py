"""What a corpus must offer, and what one that knows the truth may add.

Two protocols, so that a source is any class with these methods: training needs `Source`, evaluation judges the truth of
explanations where the source is also a `GroundTruth`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

Split = Literal["pretrain", "warm_start", "joint", "validation", "test"]
SPLITS: tuple[str, ...] = get_args(Split)


@dataclass(frozen=True, slots=True)
class Document:
    """A text with the id that its split, its positions and its bootstrap cluster depend on.

    Args:
        id: unique within the corpus; positions are drawn from it.
        text: what the target reads.
        origin: the document this one was cut from (several rows or chunks may share it); None: itself.
        explanation: the corpus's own explanation of the *whole* text. A warm start then reads the last token only.
    """

    id: str
    text: str
    origin: str | None = None
    explanation: str | None = None

    @property
    def root(self) -> str:
        """The id that splits and intervals go by: chunks of one document never part."""
        return self.id if self.origin is None else self.origin


@dataclass(frozen=True, slots=True)
class Claim:
    """One statement of an explanation, judged: false also where unparsed, or about a fact not yet revealed."""

    kind: str
    value: str
    true: bool


@runtime_checkable
class Source(Protocol):
    def documents(self, split: str) -> Sequence[Document]:
        """The documents of a split, always in the same order; `pretrain` is for `nla pretrain` alone."""
        ...

    def explanation(self, document: Document, end: int, seed: int) -> str | None:
        """The warm-start text for `document.text[:end]`, chosen by `seed`; None where there is nothing to say."""
        ...


@runtime_checkable
class GroundTruth(Protocol):
    def claims(self, explanation: str, document_id: str, text: str) -> list[Claim]:
        """The statements of `explanation` about `text`, the beginning of the document, each true or false."""
        ...

    def facts(self, document_id: str, text: str) -> list[tuple[str, str]]:
        """Kind and value of every fact that `text` has revealed."""
        ...
