"""Out-of-memory retry: work is done at a smaller size when memory runs out, instead of ending the run."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from lightning.pytorch import LightningModule

from nla.errors import TrainingError, first_line
from nla.training.parallel import meets_in_each_pass, reduced_once

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Work:
    """What runs out of memory, in the words of its messages. `{size}` is filled in.

    Args:
        doing: the work at its present size.
        retried: how it continues at the smaller size.
        smallest: the remedy where no smaller size is left.
        sharded: the remedy under FSDP, where no rank can retry alone; `{size}` is the next smaller size.
    """

    doing: str
    retried: str
    smallest: str
    sharded: str


SAMPLING = Work(
    doing="while sampling {size} rows at a time",
    retried="the rest is sampled {size} at a time",
    smallest="lower sampling.group_size, sampling.max_new_tokens or the batch_size of its data, or use more GPUs",
    sharded="lower sampling.group_size, sampling.max_new_tokens or the batch_size of its data, or use more GPUs",
)
SCORING = Work(
    doing="while scoring {size} rows at a time",
    retried="the rest is scored {size} at a time",
    smallest="lower sampling.max_new_tokens or the batch_size of its data, or use more GPUs",
    sharded="lower sampling.max_new_tokens or the batch_size of its data, or use more GPUs",
)
MICRO_BATCHES = Work(
    doing="with micro-batches of {size} samples",
    retried=(
        "the step is done again with {size}, which gives the same gradient: hardware.micro_batch_size={size} avoids "
        "the failed attempt"
    ),
    smallest=(
        "none is smaller: lower sampling.group_size or sampling.max_new_tokens, switch activation checkpointing on, or "
        "use adapter=lora or more GPUs"
    ),
    sharded="under FSDP they are not halved during a step: set hardware.micro_batch_size={size} (see nla preflight)",
)


def retried(stage: LightningModule, work: Work, attempt: Callable[[int], R], size: int, unit: int = 1) -> tuple[R, int]:
    """`attempt(size)`, with half the size each time memory runs out. Returns its result and the size that fitted.

    Sizes stay multiples of `unit`. Raises TrainingError where `unit` does not fit, and under FSDP, whose ranks meet
    inside each pass: a retry on one rank would leave the others waiting.
    """
    while True:
        try:
            return attempt(size), size
        except torch.OutOfMemoryError as error:
            cause = first_line(error)
        # outside the handler, whose traceback holds the tensors that must be freed
        smaller = size // 2 // unit * unit
        where = f"stage {stage.name}, rank {stage.global_rank}: out of memory {work.doing.format(size=size)}"
        if smaller == 0:
            raise TrainingError(f"{where} ({cause}): {work.smallest}")
        if meets_in_each_pass(stage):
            raise TrainingError(f"{where} ({cause}): {work.sharded.format(size=smaller)}")
        stage.zero_grad()  # what the failed attempt has left must be free before the cache is emptied
        torch.cuda.empty_cache()
        warnings.warn(f"{where}; {work.retried.format(size=smaller)}", stacklevel=3)
        size = smaller


def in_micro_batches(stage: LightningModule, attempt: Callable[[int], R], size: int, unit: int = 1) -> tuple[R, int]:
    """A step's backward passes in micro-batches of at most `size` rows; gradients are reduced over ranks at the end.

    Each attempt starts from cleared gradients: the pass that failed has left a part of its own, and a copy to return to
    would take the memory that is lacking. So the gradient is that of a step begun at the smaller size. Ranks may differ
    in size, because gradients are reduced once, after the last micro-batch. `unit`: samples of one group. Raises as
    `retried`.
    """

    def from_cleared_gradients(size: int) -> R:
        stage.zero_grad()
        with reduced_once(stage.trainer.strategy.model):
            return attempt(size)

    return retried(stage, MICRO_BATCHES, from_cleared_gradients, size, unit)


class Parts:
    """Runs rows in consecutive parts, as many rows at a time as have fitted so far: all of them at first."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.most: int | None = None  # rows at a time; None: no limit is known

    def run(self, stage: LightningModule, each: Callable[[slice], R], rows: int) -> list[R]:
        """`each(part)` of the parts of `rows` rows, in order; of one empty part where there are no rows.

        Finished parts are kept. `each` must not meet other ranks, which may have other parts. Raises as `retried`.
        """
        done: list[R] = []
        first = 0

        def finish(size: int) -> None:
            nonlocal first
            while first < rows or not done:
                part = slice(first, min(rows, first + size))
                done.append(each(part))
                first = part.stop

        size = rows if self.most is None else min(rows, self.most)
        _, fitted = retried(stage, self.work, finish, size)
        if fitted < size:
            self.most = fitted
        return done
