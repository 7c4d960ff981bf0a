"""The world as a data source: documents by split, the teacher's texts, and ground truth for evaluation."""

import random
from collections.abc import Mapping, Sequence

from nla.data.source import Claim, Document
from nla.data.world.generator import generate
from nla.data.world.statements import OUTSIDE_IN, STEMS, describe, parse_statements, reworded, say, statement
from nla.data.world.vocabulary import KINDS
from nla.data.world.wordings import EVALUATION, TRAINING
from nla.errors import ConfigError, DataError


class WorldSource:
    """Documents of the embedded world. Splits have disjoint ids, so no document is in two of them.

    Args:
        sizes: documents per split (``warm_start``, ``joint``, ``validation``, ``test``, ...).
        seed: of the world; another seed gives other documents under the same ids.
        statements: which of the known facts a warm-start text mentions; only a few, so that joint training has more to
            find. A number: each fact with this probability, independent of how many were told before. A pair: a random
            number of facts in this range, fewest and most.
        emphasis: by kind, the probability with which a known fact that a text does not mention is added after all: for
            a fact that changes along the text, which takes more texts to learn.
        thorough: share of the warm-start texts that tell all known facts instead, in a different order. A fact missing
            from a text that tells a few was mostly left out; one missing from these was never revealed by the context.
        shuffled: whether a warm-start text tells its facts in random order instead of a fixed one; the descriptions
            from which the packaged target learnt to write were shuffled.
    """

    phrases = tuple(STEMS.values())
    """frequent enough to be one token each in the world's tokenizer"""

    def __init__(
        self,
        sizes: dict[str, int],
        seed: int = 0,
        statements: float | Sequence[int] = 0.28,
        thorough: float = 0.1,
        emphasis: Mapping[str, float] | None = None,
        shuffled: bool = False,
    ) -> None:
        self.sizes, self.seed, self.shuffled = dict(sizes), seed, shuffled
        self.statements, self.thorough, self.emphasis = statements, thorough, dict(emphasis or {})
        if unknown := [kind for kind in self.emphasis if kind not in STEMS]:
            raise ConfigError(
                f"data.source.emphasis: {unknown[0]!r} is no kind of fact; choose from {', '.join(STEMS)}"
            )

    def documents(self, split: str) -> Sequence[Document]:
        if split not in self.sizes:
            raise DataError(f"data.sizes has no split '{split}': it has {sorted(self.sizes)}; add data.sizes.{split}=N")
        return [self._document(f"{split}-{number:06d}") for number in range(self.sizes[split])]

    def explanation(self, document: Document, end: int, seed: int) -> str | None:
        """A few of the facts known after ``end`` characters, chosen at random by seed, document and end.

        Where none is known, the text says so: else joint training would meet contexts that no text was given for.
        """
        rng = random.Random(f"{seed}/{document.id}/{end}")
        known = generate(document.id, self.seed).known(end)
        if self.thorough and rng.random() < self.thorough:
            return describe(known, len(known), rng, OUTSIDE_IN)
        chosen = rng.sample(sorted(known), min(self._count(len(known), rng), len(known)))
        for kind, probability in self.emphasis.items():
            if kind in known and kind not in chosen and rng.random() < probability:
                chosen.append(kind)
        return say(known, chosen, None if self.shuffled else tuple(STEMS))

    def _count(self, known: int, rng: random.Random) -> int:
        """Facts to mention, at least one."""
        if isinstance(self.statements, int | float):
            return max(1, sum(rng.random() < self.statements for _ in range(known)))
        return rng.randint(*self.statements)

    def claims(self, explanation: str, document_id: str, text: str) -> list[Claim]:
        """Judge each sentence; one that does not parse, or whose fact is not yet revealed, is false.

        That nothing is known is true until the first fact is revealed.
        """
        known = generate(document_id, self.seed).known(len(text)) or {"nothing": ""}
        return [
            Claim(kind or "unparsed", value, kind is not None and known.get(kind) == value)
            for kind, value in parse_statements(explanation)
        ]

    def facts(self, document_id: str, text: str) -> list[tuple[str, str]]:
        return list(generate(document_id, self.seed).known(len(text)).items())

    def kind(self, document_id: str) -> str:
        """The document's genre."""
        return generate(document_id, self.seed).facts["genre"]

    def paraphrase(self, explanation: str, rng: random.Random, *, training: bool = False) -> str:
        """Each statement in other words: those kept for evaluation, or those for training."""
        return reworded(explanation, TRAINING if training else EVALUATION, rng)

    def wrong_facts(self, explanation: str, rng: random.Random) -> list[tuple[str, str, str]]:
        """Each stated fact in turn with another value of its kind, at all of its mentions."""
        edited = []
        for kind, value in dict.fromkeys(parse_statements(explanation)):
            if kind in STEMS:
                other = rng.choice([known for known in KINDS[kind] if known != value])
                changed = explanation.replace(statement(kind, value), statement(kind, other))
                edited.append((kind, value, changed))
        return edited

    def full_description(self, document_id: str, text: str) -> str:
        """Every known fact, in one fixed order: the best possible explanation."""
        facts = dict(self.facts(document_id, text))
        return describe(facts, len(facts), random.Random(0))

    def _document(self, document_id: str) -> Document:
        return Document(document_id, generate(document_id, self.seed).text)
