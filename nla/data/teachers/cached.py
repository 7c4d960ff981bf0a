"""A teacher that keeps its replies: the common base of services and local models."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nla.data.teachers.ledger import Ledger, request_key
from nla.data.teachers.prompt import QUESTION, SYSTEM, judge, question
from nla.data.teachers.protocol import Estimate, Explanation, Passage, Reply
from nla.errors import TeacherError

CHARACTERS_PER_TOKEN = 4  # for an estimate
LEDGER = "teacher.sqlite"
ENOUGH = 50  # replies before the share of unusable ones is judged


class CachedTeacher(ABC):
    """Asks only for replies that are not in the ledger, and judges all of them.

    Args:
        model: the service's name for it, or a folder or hub id.
        max_tokens: of a reply.
        temperature: 0 is greedy.
        max_unusable: the run stops above this share of replies without an explanation.
        question: another wording; it must ask for an answer between explanation tags.
        cache: the ledger's file; None: `teacher.sqlite` in the prepared folder.
        usd, tokens: the budget; None: no limit.
    """

    every_rank = False

    def __init__(
        self,
        model: str,
        *,
        max_tokens: int,
        temperature: float,
        max_unusable: float,
        question: str | None = None,
        cache: str | None = None,
        usd: float | None = None,
        tokens: int | None = None,
    ) -> None:
        self.model, self.max_tokens, self.temperature = model, max_tokens, temperature
        self.max_unusable, self.wording, self.cache = max_unusable, question or QUESTION, cache
        self.limits = (usd, tokens)
        self.forbidden: tuple[str, ...] = ()
        self.name = f"{type(self).__name__}({Path(model).name if Path(model).is_dir() else model})"
        self._ledger: Ledger | None = None
        self._seen = self._unusable = 0

    def open(self, folder: Path, forbidden: Sequence[str] = (), rank: int = 0) -> None:
        path = Path(self.cache) if self.cache else folder / LEDGER
        self._ledger = Ledger(path.with_stem(f"{path.stem}-{rank}") if rank else path, *self.limits)
        self.forbidden = tuple(forbidden)

    def fingerprint(self) -> str:
        return request_key(self.identity(), "")

    @property
    def ledger(self) -> Ledger:
        assert self._ledger is not None, "open() comes first"
        return self._ledger

    def identity(self) -> dict[str, Any]:
        """Everything a reply depends on, except the passage."""
        return {
            "kind": type(self).__name__,
            "model": self.model,
            "system": SYSTEM,
            "question": self.wording,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
        }

    def key(self, passage: Passage) -> str:
        return request_key(self.identity(), passage.text)

    def prompt(self, passage: Passage) -> str:
        return question(passage, self.wording)

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """USD."""
        return 0.0

    def estimate(self, passages: Sequence[Passage]) -> Estimate:
        missing = [p for p in passages if self.ledger.find(self.key(p)) is None]
        given = sum(len(SYSTEM) + len(self.prompt(p)) for p in missing) // CHARACTERS_PER_TOKEN
        written = len(missing) * min(self.max_tokens, 150)  # a hundred words and the tags
        return Estimate(len(missing), len(passages) - len(missing), given, written, self.cost(given, written))

    def explain(self, passages: Sequence[Passage]) -> list[Explanation]:
        """One explanation per passage, `unasked` if the budget ran out before it. Raises TeacherError."""
        explanations: list[Explanation] = [Explanation(None, "unasked")] * len(passages)
        for index, reply in self.ask(passages):
            explanations[index] = self._judged(reply)
        return explanations

    def ask(self, passages: Sequence[Passage]) -> Iterator[tuple[int, Reply]]:
        """The reply to each passage with its index, as it comes: none of those that the budget leaves out."""
        missing: dict[str, list[int]] = {}  # a text that occurs twice is asked about once
        for index, passage in enumerate(passages):
            key = self.key(passage)
            reply = self.ledger.find(key)
            if reply is None:
                missing.setdefault(key, []).append(index)
            else:
                yield index, reply
        for key, reply in self.answers({key: passages[indices[0]] for key, indices in missing.items()}):
            for index in missing[key]:
                yield index, reply

    @abstractmethod
    def answers(self, passages: dict[str, Passage]) -> Iterator[tuple[str, Reply]]:
        """Replies by key, in any order, each entered in the ledger before it is yielded."""

    def _judged(self, reply: Reply) -> Explanation:
        explanation = judge(reply, self.forbidden)
        self._seen += 1
        self._unusable += explanation.text is None
        if self._seen >= ENOUGH and self._unusable > self.max_unusable * self._seen:
            raise TeacherError(
                f"teacher {self.name}: {self._unusable} of {self._seen} replies hold no explanation, the last is "
                f"{explanation.status} ({reply.text[:80]!r}); use a model that follows the form, or raise "
                f"teacher.max_unusable={self.max_unusable}"
            )
        return explanation
