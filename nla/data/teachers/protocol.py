"""What a teacher is asked, and what it gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

Status = Literal["ok", "refused", "empty", "cut", "malformed", "rejected", "unreadable", "none", "unasked"]


@dataclass(frozen=True, slots=True)
class Passage:
    """The text up to a position, and the document that it begins."""

    document: str
    text: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """A warm-start text, or why there is none.

    `refused`: the model would not. `empty`: nothing. `cut`: the length cap came first. `malformed`: not the form that
    was asked for. `rejected`: the service would not take this passage. `unreadable`: a broken reply. `none`: the corpus
    has nothing to say. `unasked`: the budget was spent before.
    """

    text: str | None
    status: Status


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model answered, before anyone has looked at its form; `stop` as in `Explanation`, `end` where it ended."""

    text: str
    stop: Literal["end", "refused", "cut", "rejected", "unreadable"]
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is still to be asked, in rows, tokens (four characters each) and USD."""

    rows: int
    cached: int
    input_tokens: int
    output_tokens: int
    usd: float


@runtime_checkable
class Teacher(Protocol):
    name: str
    """as in the manifest"""
    every_rank: bool
    """whether each process asks for its own shards; a service is asked by one, which keeps the budget"""

    def open(self, folder: Path, forbidden: Sequence[str] = (), rank: int = 0) -> None:
        """Before the first question.

        Args:
            folder: where paid replies are kept.
            forbidden: strings that no explanation may hold, such as the target's special tokens.
            rank: of the process; each one that asks has a file of its own.
        """
        ...

    def fingerprint(self) -> str:
        """A hash of all that its explanations depend on: another teacher's are not taken for its own."""
        ...

    def estimate(self, passages: Sequence[Passage]) -> Estimate: ...

    def explain(self, passages: Sequence[Passage]) -> list[Explanation]:
        """One explanation per passage. Raises TeacherError where going on makes no sense."""
        ...
