"""Choices that depend on names, not on order: the same in every process, shard and run."""

import hashlib
import random
from collections.abc import Sequence

EARLY = 8  # readable tokens at the beginning of a document


def keyed_seed(*parts: object) -> int:
    """A 63-bit seed from the text of `parts`; Python's own hash() differs from process to process."""
    joined = "\0".join(str(part) for part in parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(joined, digest_size=8).digest(), "big") >> 1


def keyed_fraction(*parts: object) -> float:
    """A number in [0, 1), uniform over the text of `parts`."""
    return (keyed_seed(*parts) >> 10) / 2**53


def draw_positions(eligible: Sequence[int], count: int, seed: int, document_id: str, early: float = 0.0) -> list[int]:
    """`count` distinct positions from `eligible`, ascending, by an RNG keyed by (seed, document id).

    `early`: the share that is drawn from the first `EARLY` alone; the others are drawn from all, uniformly.
    """
    rng = random.Random(keyed_seed("position", seed, document_id))
    first = sum(rng.random() < early for _ in range(count)) if early else 0
    chosen = rng.sample(list(eligible[:EARLY]), min(first, len(eligible[:EARLY])))
    rest = [position for position in eligible if position not in chosen] if chosen else list(eligible)
    return sorted(chosen + rng.sample(rest, count - len(chosen)))


def eligible_positions(
    offsets: Sequence[tuple[int, int]], special: Sequence[bool], min_context: int, limit: int | None = None
) -> list[int]:
    """Token indices that may be read.

    Leaves out special tokens, tokens with fewer than `min_context` ordinary tokens to their left, and tokens that end
    inside a character (byte-level tokenizers split rare ones), which have no exact text context.

    Args:
        offsets: characters [begin, end) of each token.
        special: whether the tokenizer added the token (BOS, EOS).
        limit: consider only the first `limit` tokens.
    """
    eligible, context = [], 0
    last = len(offsets) if limit is None else min(limit, len(offsets))
    for index in range(last):
        begin, end = offsets[index]
        if special[index] or end <= begin:
            continue
        following = index + 1
        splits_character = following < len(offsets) and not special[following] and offsets[following][0] < end
        if context >= min_context and not splits_character:
            eligible.append(index)
        context += 1
    return eligible
