"""The target as its own teacher: no key, no other model, plain sentences that can be checked.

Three lines, each of which can be switched off: what the text is about (the words that told the target the most), what
the target expects after the last word (its most probable next words, and its greedy continuation), and what was just
read (the last words, quoted). Everything comes from the target's own next-token distributions, so a claim of such a
text is true or false without a judge.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nla.data.teachers.expectations import QUOTES, Expectation, expectations
from nla.data.teachers.ledger import request_key
from nla.data.teachers.protocol import Estimate, Explanation, Passage
from nla.errors import ConfigError
from nla.models.backbone import load_model, load_tokenizer
from nla.models.target import Target

LIKELY = ((0.5, "surely"), (0.2, "probably"), (0.0, "perhaps"))  # of the most probable next word


class TargetTeacher:
    """Describes a passage by the distributions of the target itself.

    Args:
        model, dtype, revision: the target.
        about: words of the first line; 0: no such line.
        expected: next words in the second line; 0: none.
        continued: tokens of the greedy continuation in the second line; 0: none.
        quoted: last words in the third line; 0: no such line.
        device: where it runs; None: the process's first GPU, else the CPU.
    """

    every_rank = True

    def __init__(
        self,
        model: str,
        *,
        about: int,
        quoted: int,
        expected: int,
        continued: int,
        dtype: str = "float32",
        revision: str | None = None,
        device: str | None = None,
    ) -> None:
        lines = {"about": about, "quoted": quoted, "expected": expected, "continued": continued}
        for name, count in lines.items():
            if count < 0:
                raise ConfigError(f"teacher.{name}={count}: must be 0 (no such part) or more")
        if not any(lines.values()):
            raise ConfigError("teacher: about, quoted, expected and continued are all 0; switch one line on")
        self.model, self.dtype, self.revision, self.device = model, dtype, revision, device
        self.about, self.quoted, self.expected, self.continued = about, quoted, expected, continued
        self.name = f"TargetTeacher({Path(model).name})"
        self.forbidden: tuple[str, ...] = ()
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    def open(self, folder: Path, forbidden: Sequence[str] = (), rank: int = 0) -> None:
        self.forbidden = tuple(forbidden)

    def share(self, target: Target) -> None:
        """Read with this target instead of a copy, if it is the same model in the same type."""
        if target.loaded_as == (self.model, self.dtype, self.revision):
            self._loaded = target.model, target.tokenizer

    def fingerprint(self) -> str:
        numbers = [self.about, self.quoted, self.expected, self.continued]
        identity = {"kind": "TargetTeacher 3", "model": self.model, "revision": self.revision, "lines": numbers}
        return request_key(identity, self.dtype)

    def estimate(self, passages: Sequence[Passage]) -> Estimate:
        return Estimate(len(passages), 0, 0, 0, 0.0)

    def explain(self, passages: Sequence[Passage]) -> list[Explanation]:
        model, tokenizer = self._load()
        explanations = [Explanation(None, "none")] * len(passages)
        for index, expectation in expectations(
            model, tokenizer, [passage.text for passage in passages], self.continued, surprisal=self.about > 0
        ):
            text = self.describe(passages[index].text, expectation)
            if any(word in text for word in self.forbidden):
                explanations[index] = Explanation(None, "malformed")
            elif text:
                explanations[index] = Explanation(text, "ok")
        return explanations

    def describe(self, text: str, expectation: Expectation) -> str:
        """The lines, without what would close a quotation or a tag.

        The last word comes first: the verbalizer reads it best and the rest follows from it. The quotation is in the
        order of the text and at the end, where the reconstructor reads it best (`docs/records/results.md`).
        """
        lines = []
        if self.about and (topic := distinctive(expectation.surprisal, self.about)):
            lines.append(f"It is about {', '.join(topic)}.")
        expects = []
        if self.expected and expectation.next_words:
            following = expectation.next_words[: self.expected]
            likely = next(word for least, word in LIKELY if following[0][1] >= least)
            expects.append(f"{likely} {_listed([word for word, _ in following])}")
        if self.continued and (continuation := bare(expectation.continuation)):
            expects.append(f'as in "{continuation}"')
        words = last_words(text, self.quoted) if self.quoted else []
        if expects:
            after = f'After "{words[-1]}"' if words else "Next"
            lines.append(f"{after} comes {', '.join(expects)}.")
        if words:
            lines.append(f'It just said "{" ".join(words)}".')
        return "\n".join(lines)

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if self._loaded is None:
            device: Any = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
            model = load_model(self.model, self.dtype, self.revision).to(device)
            self._loaded = model, load_tokenizer(self.model, self.revision)
        return self._loaded


def distinctive(surprisal: Sequence[tuple[str, float]], count: int) -> list[str]:
    """The words that told the target the most, all occurrences together, in the order of the text."""
    total: dict[str, float] = defaultdict(float)
    shown: dict[str, str] = {}
    for word, nats in surprisal:
        total[word.lower()] += nats
        shown.setdefault(word.lower(), word)
    chosen = set(sorted(total, key=lambda word: (-total[word], word))[:count])
    return [shown[word] for word in total if word in chosen]


def bare(text: str) -> str:
    """On one line, without quotation marks and angle brackets."""
    return " ".join(QUOTES.sub("", text).split())


def last_words(text: str, count: int) -> list[str]:
    """As they are quoted, in the order of the text."""
    return bare(" ".join(text.split()[-count:])).split()


def _listed(words: list[str]) -> str:
    *others, last = (f'"{bare(word)}"' for word in words)
    return f"{', '.join(others)} or {last}" if others else last
