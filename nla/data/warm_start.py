"""Where a row's warm-start text comes from: its source, or the target itself when the row is due."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from nla.data.source import Document, Source
from nla.data.teachers.protocol import Passage
from nla.data.teachers.target import TargetTeacher


@dataclass(frozen=True, slots=True)
class Context:
    """`document.text[:end]`, and the seed of the choice where there are several texts."""

    document: Document
    end: int
    seed: int


@runtime_checkable
class WarmStartTexts(Protocol):
    def texts(self, contexts: Sequence[Context]) -> list[str | None]:
        """One for each context; None where there is nothing to say."""
        ...

    def lacks(self, document: Document, end: int) -> bool:
        """Whether it is known, without writing it, that there is no text for this context."""
        ...


@dataclass(frozen=True, slots=True)
class SourceTexts:
    """The source's own explanations."""

    source: Source

    def texts(self, contexts: Sequence[Context]) -> list[str | None]:
        return [self.source.explanation(context.document, context.end, context.seed) for context in contexts]

    def lacks(self, document: Document, end: int) -> bool:
        return self.source.explanation(document, end, 0) is None


@dataclass(frozen=True, slots=True)
class TaughtTexts:
    """Those of `teacher=self`, a batch at a time."""

    teacher: TargetTeacher

    def texts(self, contexts: Sequence[Context]) -> list[str | None]:
        passages = [Passage(context.document.root, context.document.text[: context.end]) for context in contexts]
        return [explanation.text for explanation in self.teacher.explain(passages)]

    def lacks(self, document: Document, end: int) -> bool:
        return False
