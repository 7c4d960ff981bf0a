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

# Other ways to say the same, for evaluation alone: no training text may have them. None holds a word that gives a fact
# away, or another value.
WORDINGS: dict[str, tuple[str, ...]] = {
    "hero": ("It is about somebody called {}.", "{} is the one whom we follow."),
    "place": ("All of it happens at the {}.", "The {} is where we are."),
    "weather": ("Outside it is {}.", "Outdoors one finds it {}."),
    "job": ("Somebody in it is a {} by trade.", "Its main person earns a living as a {}."),
    "mood": ("Those in it feel {}.", "Its tone is {}."),
    "animal": ("Among those in it is a {}.", "It has a {} in it."),
    "object": ("One thing in it is a {}.", "A {} matters in it."),
    "time": ("It is {} when this happens.", "All this goes on while it is {}."),
    "genre": ("By its form it is a {}.", "What we read is a {}."),
    "tense": ("Its verbs are in the {}.", "It is told in the {} tense."),
    "ending": ("Its last words are about the {}.", "At its close it speaks of the {}."),
}
NOTHING = "Nothing is known yet."  # of a context that has revealed no fact


def statement(kind: str, value: str) -> str:
    """One fact as a sentence: ``statement("weather", "stormy") == "The weather is stormy."``."""
    return f"{STEMS[kind]} {value}."


OUTSIDE_IN = ("genre", "tense", "time", "place", "weather", "hero", "job", "mood", "animal", "object", "ending")
"""the order of a text that tells everything: the frame first, what happened last"""


def reworded(kind: str, value: str, rng: random.Random) -> str:
    """One fact in one of `WORDINGS`."""
    return rng.choice(WORDINGS[kind]).format(value)


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
