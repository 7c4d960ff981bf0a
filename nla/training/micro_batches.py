"""The backward passes of one step: in micro-batches that fit, and reduced over ranks once, after the last of them."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from nla.errors import TrainingError, first_line

R = TypeVar("R")


def in_micro_batches(stage: LightningModule, run: Callable[[int], R], size: int, unit: int = 1) -> tuple[R, int]:
    """`run(size)`: a step's backward passes in micro-batches of that size, halved when memory runs out.

    Each attempt starts from cleared gradients: the pass that failed has left a part of its own behind, and a copy to go
    back to would take the memory that is lacking. So the gradient is that of a step begun at the smaller size. Ranks
    may differ in size, because gradients are reduced once, after the last micro-batch.

    Args:
        unit: what a micro-batch is a multiple of: the samples of one group.

    Returns what `run` returns and the size that fitted. Raises TrainingError where `unit` does not fit, and under FSDP,
    whose ranks meet inside each pass: a second attempt of one would leave the others waiting.
    """
    strategy = stage.trainer.strategy
    while True:
        stage.zero_grad()
        try:
            with reduced_once(strategy.model):
                return run(size), size
        except torch.OutOfMemoryError as error:
            said = first_line(error)
        # outside the handler, whose traceback holds the tensors that are to go
        smaller = size // 2 // unit * unit
        where = f"stage {stage.name}, rank {stage.global_rank}: out of memory with micro-batches of {size} samples"
        if smaller == 0:
            raise TrainingError(
                f"{where} ({said}), and none is smaller: lower sampling.group_size or sampling.max_new_tokens, switch "
                "activation checkpointing on, or use adapter=lora or more GPUs"
            )
        if meets_in_each_pass(stage):
            raise TrainingError(
                f"{where} ({said}); under FSDP they are not halved during a step: set hardware.micro_batch_size="
                f"{smaller} (nla preflight says what fits)"
            )
        stage.zero_grad()
        torch.cuda.empty_cache()
        warnings.warn(
            f"{where}; the step is done again with {smaller}, which gives the same gradient: "
            f"hardware.micro_batch_size={smaller} spares the attempt",
            stacklevel=2,
        )
        size = smaller


def meets_in_each_pass(stage: LightningModule) -> bool:
    """Whether ranks wait for one another in each pass through a model, so that none may run more of them."""
    return isinstance(stage.trainer.strategy, (FSDPStrategy, ModelParallelStrategy))


@contextmanager
def reduced_once(model: torch.nn.Module | None) -> Iterator[None]:
    """Inside, gradients of a DDP model add up on their own rank; in the end they are averaged over ranks."""
    if not isinstance(model, DistributedDataParallel):
        yield
        return
    with model.no_sync():
        yield
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    waiting = [
        distributed.all_reduce(gradient.div_(distributed.get_world_size()), async_op=True) for gradient in gradients
    ]
    for work in waiting:
        if work is not None:
            work.wait()
