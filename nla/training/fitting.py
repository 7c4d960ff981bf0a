"""Sampling and scoring in parts that fit into memory. What is done is kept; only the rest is done in smaller parts."""

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from lightning.pytorch import LightningModule

from nla.errors import TrainingError, first_line
from nla.training.micro_batches import meets_in_each_pass

R = TypeVar("R")


class Fitting:
    """Runs over rows, as many at a time as have fitted so far: all of them until memory runs out.

    Args:
        what: is done, for messages. remedy: where not even one row fits.
    """

    def __init__(self, what: str, remedy: str) -> None:
        self.what, self.remedy = what, remedy
        self.most: int | None = None  # rows at a time

    def run(self, stage: LightningModule, each: Callable[[slice], R], rows: int) -> list[R]:
        """`each(part)` of consecutive parts of `rows` rows, in order; of an empty one where there are no rows.

        Nothing in `each` may meet other ranks, which may have other parts. Raises TrainingError where one row does not
        fit, and under FSDP, whose ranks meet in each pass.
        """
        done: list[R] = []
        first = 0
        while first < rows or not done:
            size = min(rows - first, self.most or rows)
            try:
                done.append(each(slice(first, first + size)))
                first += size
                continue
            except torch.OutOfMemoryError as error:
                said = first_line(error)
            # outside the handler, whose traceback holds the tensors that are to go
            name = getattr(stage, "name", "")
            where = f"stage {name}, rank {stage.global_rank}: out of memory while {self.what} {size} rows at a time"
            if size < 2 or meets_in_each_pass(stage):
                raise TrainingError(f"{where} ({said}): {self.remedy}")
            self.most = size // 2
            torch.cuda.empty_cache()
            warnings.warn(f"{where}; the rest is done {self.most} at a time", stacklevel=2)
        return done
