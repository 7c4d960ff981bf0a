"""Statements about a document of the world: facts as short English sentences, and back.

``describe`` plays the teacher; ``parse_statements`` turns an explanation into claims that ground truth can judge.
"""

import random
import re
from collections.abc import Sequence

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

# Other wordings, for evaluation alone: in no training text. Some turn the sentence round, some use other words.
WORDINGS: dict[str, tuple[str, ...]] = {
    "hero": ("{} is the hero.", "It is about {}.", "The name of the hero is {}."),
    "place": ("The {} is the scene.", "All of it is at the {}.", "The place is the {}."),
    "weather": ("It is {}.", "{} is the weather.", "It feels {}."),
    "job": ("The hero is a {}.", "A {} is the hero.", "The job of the hero is that of a {}."),
    "mood": ("{} is the mood.", "The hero is {}.", "It is {} in mood."),
    "animal": ("A {} is there.", "The animal is a {}.", "A {} is near."),
    "object": ("It has a {}.", "The object is a {}.", "A {} is told of."),
    "time": ("It is {}.", "{} is the time.", "All of it is in the {}."),
    "genre": ("It is a {}.", "A {} is this.", "The text is a {}."),
    "tense": ("It is in the {}.", "{} is the tense.", "It is told in the {} tense."),
    "ending": ("The {} is its end.", "At the end is the {}.", "The last is the {}."),
}
NOTHING = "Nothing is known yet."  # of a context that has revealed no fact


def statement(kind: str, value: str) -> str:
    """One fact as a sentence: ``statement("weather", "stormy") == "The weather is stormy."``."""
    return f"{STEMS[kind]} {value}."


OUTSIDE_IN = ("genre", "tense", "time", "place", "weather", "hero", "job", "mood", "animal", "object", "ending")
"""the order of a text that tells everything: the frame first, what happened last"""


def reworded(kind: str, value: str, rng: random.Random) -> str:
    """One fact in one of `WORDINGS`."""
    text = rng.choice(WORDINGS[kind]).format(value)
    return text[0].upper() + text[1:]


def describe(facts: dict[str, str], count: int, rng: random.Random, order: Sequence[str] | None = tuple(STEMS)) -> str:
    """``count`` statements of ``facts``, chosen at random, in this order; None: in random order, the ending last.

    In a fixed order, leaving out a kind is a separate choice at a known place, which joint training can explore.
    From shuffled texts the verbalizer learnt to continue until every kind was named, revealed or not. Without facts the
    text is `NOTHING`.
    """
    if not facts:
        return NOTHING
    chosen = rng.sample(sorted(facts), min(count, len(facts)))
    chosen.sort(key=order.index if order else lambda kind: kind == "ending")
    return " ".join(statement(kind, facts[kind]) for kind in chosen)


def parse_statements(explanation: str) -> list[tuple[str | None, str]]:
    """Split an explanation into ``(kind, value)``; a sentence without a known form has kind None.

    `NOTHING` is a claim of kind ``nothing``.
    """
    claims: list[tuple[str | None, str]] = []
    for sentence in re.findall(r"[^.]*\.|[^.]+$", explanation.strip()):
        sentence = sentence.strip()
        if sentence == NOTHING:
            claims.append(("nothing", ""))
            continue
        kind = next((kind for kind, stem in STEMS.items() if sentence.startswith(stem + " ")), None)
        value = sentence[len(STEMS[kind]) + 1 :].removesuffix(".") if kind else sentence
        claims.append((kind if kind and sentence.endswith(".") and value in KINDS[kind] else None, value))
    return claims
