"""The work of an evaluation, split over ranks: one rank does each item, and all get all results."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import distributed

T = TypeVar("T")
R = TypeVar("R")


def shared(items: Sequence[T], run: Callable[[T], R]) -> list[R]:
    """`run` of every item, in order. Ranks take turns; without a process group it is a plain loop.

    All ranks must pass the same items. Results are pickled, but only between processes of this run.
    """
    if not distributed.is_initialized():
        return [run(item) for item in items]
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    by_rank: list[Any] = [None] * ranks
    distributed.all_gather_object(by_rank, [run(item) for item in items[rank::ranks]])
    return [by_rank[index % ranks][index // ranks] for index in range(len(items))]


def is_first() -> bool:
    """Whether this process writes and prints for all ranks."""
    return not distributed.is_initialized() or distributed.get_rank() == 0
