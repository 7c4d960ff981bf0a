"""Some of the texts that the reconstructor learns from, in other words: what it must learn is what they mean."""

import random
from collections.abc import Sequence

from nla.data.positions import keyed_fraction, keyed_seed
from nla.data.rewording import rewording_of
from nla.errors import ConfigError


def check_share(stage: str, share: float) -> float:
    """Raises ConfigError for what is no share."""
    if not 0 <= share <= 1:
        raise ConfigError(f"stage.{stage}.reworded={share}: must be 0 (none) to 1 (all)")
    return share


def reworded(texts: Sequence[str], keys: Sequence[str], share: float, source: object) -> list[str]:
    """The texts, and in place of a share of them the same in other words. Texts of one key change together.

    Choices depend on key and text alone, so ranks and micro-batches change nothing. Raises ConfigError if nobody knows
    other words for such texts.
    """
    rewording = rewording_of(source, texts, training=True)
    if rewording is None:
        raise ConfigError(
            f"reworded={share}: {type(source).__name__} knows no other words for its texts, and they are not those of "
            "teacher=self; set stage.reconstructor.reworded=0 and stage.joint.reworded=0"
        )
    return [
        rewording(text, random.Random(keyed_seed("wording", key, text)))
        if keyed_fraction("reworded", key) < share
        else text
        for text, key in zip(texts, keys, strict=True)
    ]
