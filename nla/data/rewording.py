"""Explanations in other words: by their source, or as those of `teacher=self`."""

import random
from collections.abc import Callable, Sequence

from nla.data.source import Paraphrases
from nla.data.teachers.target_claims import are_descriptions, paraphrased_description

Rewording = Callable[[str, random.Random], str]


def rewording_of(source: object, texts: Sequence[str | None], *, training: bool = False) -> Rewording | None:
    """How such texts are put in other words; None if unknown.

    With `training` in wordings that training may use, else in those kept for evaluation.
    """
    if isinstance(source, Paraphrases):
        return lambda text, rng: source.paraphrase(text, rng, training=training)
    if are_descriptions(texts):
        return lambda text, rng: paraphrased_description(text, rng, training=training)
    return None
