"""Which items are run together: those of like length, as many as a budget of tokens allows."""

from collections.abc import Sequence


def length_buckets(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Indices of `lengths` in batches of at most `tokens`, padding included (or of one item); shortest first."""
    buckets: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not buckets or (len(buckets[-1]) + 1) * lengths[index] > tokens:
            buckets.append([])
        buckets[-1].append(index)
    return buckets
