"""Edits of explanations that change their form, or one of their facts, and nothing else."""

import random
import re
from collections.abc import Callable, Sequence

from nla.data.positions import keyed_seed
from nla.data.source import Counterfactuals
from nla.data.teachers.target_claims import are_descriptions, wrong_descriptions
from nla.models.explanations import sentences, without_quotes

Edit = Callable[[str, random.Random], str]


def sentence_order(text: str, rng: random.Random) -> str:
    """The sentences in another order; a text of one sentence stays."""
    parts = sentences(text)
    return _reordered(parts, rng) if len(parts) > 1 else text


def word_order(text: str, rng: random.Random) -> str:
    """All words in another order: grammar and the relations between words are gone."""
    words = text.split()
    return _reordered(words, rng) if len(words) > 1 else text


def first_half(text: str, rng: random.Random) -> str:
    """The first half of the words, rounded up, with their signs and spaces."""
    words = list(re.finditer(r"\S+", text))
    return text[: words[(len(words) + 1) // 2 - 1].end()] if words else text


def unquoted(text: str, rng: random.Random) -> str:
    """Without quotations."""
    return without_quotes(text)


def _reordered(parts: Sequence[str], rng: random.Random) -> str:
    order = list(range(len(parts)))
    while order == sorted(order):
        rng.shuffle(order)
    return " ".join(parts[index] for index in order)


def wrong_facts_of(
    source: object, texts: Sequence[str | None]
) -> Callable[[str, random.Random], list[tuple[str, str, str]]] | None:
    """How one fact of such texts is made wrong; None if unknown."""
    if isinstance(source, Counterfactuals):
        return source.wrong_facts
    if are_descriptions(texts):
        return lambda text, rng: wrong_descriptions(text, [other for other in texts if other], rng)
    return None


def row_rng(seed: int, name: str, row: int) -> random.Random:
    """The same choices for the same row whatever is edited before it."""
    return random.Random(keyed_seed("edit", seed, name, row))
