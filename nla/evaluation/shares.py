"""The work of an evaluation, shared by ranks: each item is done by one of them, and all get all results."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import distributed

T = TypeVar("T")
R = TypeVar("R")


def shared(items: Sequence[T], run: Callable[[T], R]) -> list[R]:
    """`run` of every item, in their order. Ranks take turns; without a process group it is a plain loop.

    All ranks must call with the same items. Results travel by pickle, between processes of this run alone.
    """
    if not distributed.is_initialized():
        return [run(item) for item in items]
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    parts: list[Any] = [None] * ranks
    distributed.all_gather_object(parts, [run(item) for item in items[rank::ranks]])
    return [parts[index % ranks][index // ranks] for index in range(len(items))]


def is_first() -> bool:
    """Whether this process writes and prints for all of them."""
    return not distributed.is_initialized() or distributed.get_rank() == 0
