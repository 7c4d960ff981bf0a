"""Statements about a document of the world: facts as short English sentences, and back.

``describe`` plays the teacher; ``parse_statements`` turns an explanation into claims that ground truth can judge.
"""

import random
import re
from collections.abc import Mapping, Sequence

from nla.data.world.vocabulary import KINDS

STEMS: dict[str, str] = {
    "hero": "The hero is",
    "place": "The scene is the",
    "weather": "The weather is",
    "job": "The hero works as a",
    "mood": "The mood is",
    "animal": "There is a",
    "object": "It tells of a",
    "time": "The time is",
    "genre": "This is a",
    "tense": "The tense is",
    "ending": "It ends with the",
}

NOTHING = "Nothing is known yet."  # of a context that has revealed no fact


def statement(kind: str, value: str, stems: Mapping[str, str] = STEMS) -> str:
    """One fact as a sentence: ``statement("weather", "stormy") == "The weather is stormy."``."""
    return f"{stems[kind]} {value}."


OUTSIDE_IN = ("genre", "tense", "time", "place", "weather", "hero", "job", "mood", "animal", "object", "ending")
"""the order of a text that tells everything: the frame first, what happened last"""


def reworded(explanation: str, wordings: Mapping[str, Sequence[str]], rng: random.Random) -> str:
    """Each statement in one of the wordings of its kind; a sentence of no known form stays."""
    claims = parse_statements(explanation)
    return " ".join(rng.choice(wordings[kind]).format(value) if kind in STEMS else value or NOTHING
                    for kind, value in claims)  # fmt: skip


def describe(facts: dict[str, str], count: int, rng: random.Random, order: Sequence[str] | None = tuple(STEMS)) -> str:
    """``count`` statements of ``facts``, chosen at random, in this order; None: in random order, the ending last.

    In a fixed order, leaving out a kind is a separate choice at a known place, which joint training can explore.
    From shuffled texts the verbalizer learnt to continue until every kind was named, revealed or not.
    """
    return say(facts, rng.sample(sorted(facts), min(count, len(facts))), order)


def say(
    facts: dict[str, str],
    kinds: Sequence[str],
    order: Sequence[str] | None = tuple(STEMS),
    stems: Mapping[str, str] = STEMS,
) -> str:
    """The facts of these kinds, in this order; None: as they are given, the ending last. Without facts `NOTHING`."""
    if not facts:
        return NOTHING
    chosen = list(kinds)
    chosen.sort(key=order.index if order else lambda kind: kind == "ending")
    return " ".join(statement(kind, facts[kind], stems) for kind in chosen)


def parse_statements(
    explanation: str, stems: Mapping[str, str] = STEMS, values: Mapping[str, Sequence[str]] = KINDS
) -> list[tuple[str | None, str]]:
    """Split an explanation into ``(kind, value)``; a sentence without a known form has kind None.

    `NOTHING` is a claim of kind ``nothing``.
    """
    claims: list[tuple[str | None, str]] = []
    for sentence in re.findall(r"[^.]*\.|[^.]+$", explanation.strip()):
        sentence = sentence.strip()
        if sentence == NOTHING:
            claims.append(("nothing", ""))
            continue
        kind = next((kind for kind, stem in stems.items() if sentence.startswith(stem + " ")), None)
        value = sentence[len(stems[kind]) + 1 :].removesuffix(".") if kind else sentence
        claims.append((kind if kind and sentence.endswith(".") and value in values[kind] else None, value))
    return claims
