"""Where texts come from: protocols, so that a source is any class with these methods.

Training and evaluation need a `Source`, whose documents are held in memory. `nla prepare` also takes a larger one, a
`StreamedSource`. Evaluation judges the truth of explanations if the source is also a `GroundTruth`.
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

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
class Row:
    """One entry of a streamed source, not yet checked.

    Args:
        id: unique within the source.
        content: a text, or the messages of a chat.
        origin: what splits go by if several rows belong together; None: each row by itself.
        explanation: of the whole text, if the source has one.
        split: if the source itself assigns one.
    """

    id: str
    content: Any
    origin: str | None = None
    explanation: str | None = None
    split: str | None = None


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
class StreamedSource(Protocol):
    name: str
    """as in metadata: no path of this machine"""
    skipped: Counter[str]
    """rows that could not be read, by reason"""

    def rows(self) -> Iterator[Row]:
        """Every row, always in the same order; nothing is held."""
        ...

    def version(self) -> str:
        """Changes when the rows may have changed: a preparation is not continued on another version."""
        ...


@runtime_checkable
class GroundTruth(Protocol):
    def claims(self, explanation: str, document_id: str, text: str) -> list[Claim]:
        """The statements of `explanation` about `text`, the beginning of the document, each true or false."""
        ...

    def facts(self, document_id: str, text: str) -> list[tuple[str, str]]:
        """Kind and value of every fact that `text` has revealed."""
        ...


@runtime_checkable
class Kinds(Protocol):
    def kind(self, document_id: str) -> str:
        """The kind of document, such as its genre; an evaluation tells them apart."""
        ...


@runtime_checkable
class Paraphrases(Protocol):
    def paraphrase(self, explanation: str, rng: random.Random, *, training: bool = False) -> str:
        """The same statements in other words; what cannot be parsed stays as it is.

        With `training` in wordings that training may use, else in those kept for evaluation.
        """
        ...


@runtime_checkable
class Prompts(Protocol):
    def prompts(self, name: str) -> Mapping[str, Any] | None:
        """The source's own prompt set of an experiment (`nla.evaluation.prompts`), such as `couplets`; None: none."""
        ...


@runtime_checkable
class Counterfactuals(Protocol):
    def wrong_facts(self, explanation: str, rng: random.Random) -> list[tuple[str, str, str]]:
        """For each fact that is stated its kind and value, and the explanation with another value in its place."""
        ...
