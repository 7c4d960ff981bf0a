"""What a teacher receives and returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

Status = Literal["ok", "refused", "empty", "cut", "malformed", "rejected", "unreadable", "none", "unasked"]


@dataclass(frozen=True, slots=True)
class Passage:
    """The text up to a position, and the document it comes from."""

    document: str
    text: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """A warm-start text, or why there is none.

    `refused`: by the model. `empty`: an empty reply. `cut`: the length cap came first. `malformed`: not the requested
    form. `rejected`: the service refused this passage. `unreadable`: a broken reply. `none`: the corpus has no
    explanation. `unasked`: the budget ran out before.
    """

    text: str | None
    status: Status


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's answer before its form is checked; `stop` as in `Explanation`, or `end` for a complete answer."""

    text: str
    stop: Literal["end", "refused", "cut", "rejected", "unreadable"]
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """What remains to be asked, in rows, tokens (four characters each) and USD."""

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
    """whether each process asks for its own shards; only one asks a service, so that it keeps the budget"""

    def open(self, folder: Path, forbidden: Sequence[str] = (), rank: int = 0) -> None:
        """Called before the first question.

        Args:
            folder: where paid replies are kept.
            forbidden: strings that no explanation may contain, such as the target's special tokens.
            rank: of the process; each one that asks has its own file.
        """
        ...

    def fingerprint(self) -> str:
        """A hash of everything its explanations depend on, which tells them from another teacher's."""
        ...

    def estimate(self, passages: Sequence[Passage]) -> Estimate: ...

    def explain(self, passages: Sequence[Passage]) -> list[Explanation]:
        """One explanation per passage. Raises TeacherError if continuing makes no sense."""
        ...
