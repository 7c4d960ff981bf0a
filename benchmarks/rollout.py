"""Rollouts: the engine against `generate`, on the world's target and on a random Llama of 60M parameters.

    python benchmarks/rollout.py --pair runs/world/nla

Counted are useful tokens, those through a sample's first stop token. The world's lengths are those of the pair; without
`--pair` an untrained one is sampled, which writes less. Random weights never stop: a part of the vocabulary is declared
to stop them, the same for all samplers, so large that a pilot's mean length is `--mean-length`. The weights of the 60M
model are bf16 for all; the engine computes in fp32, which a CPU without matrix units for bf16 does faster, and is
compared with itself in bf16.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import plain_rollout
import torch
from jaxtyping import Int
from limits import bound, costliest, decode_limit, operations
from models import SIXTY_MILLION, TINY
from tasks import Task, random_task, stopping, world_task
from timing import Row, Run, alternate, options, pin, record
from torch import Tensor

from nla.models.backbone import body

BATCH, SINGLY = "`generate(inputs_embeds=…)`, same batch", "`generate` for each activation"

Lengths = Int[Tensor, " sample"]  # useful tokens of each
Sampler = Callable[[Task, int], Lengths]  # the second argument is a seed


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--pair", type=Path, help="saved pair of the world")
    parser.add_argument("--activations", type=int, default=16, help="of the 60M model, 8 samples each")
    parser.add_argument("--mean-length", type=float, default=43.0, help="tokens per sample at 60M, of at most 100")
    arguments = parser.parse_args()
    pin(arguments.core)
    if arguments.quick:
        world = world_task(arguments.pair, 2, 4, 6)
        large = stopping(random_task(TINY, 2, 2, 12), 8.0)
    else:
        world = world_task(arguments.pair, 32, 4, 40)
        large = stopping(random_task(SIXTY_MILLION, arguments.activations, 8, 100), arguments.mean_length)
    rows, figures = [], {}
    widest = large
    large = replace(large, dtype="float32")
    for task, others in ((world, {BATCH: same_batch}), (large, {BATCH: same_batch, SINGLY: per_activation})):
        found, figures[task.name] = measure(task, others, arguments.repeats)
        rows += found
    comparison = alternate(counted(large, ours, []), counted(widest, ours, []), arguments.repeats)
    rows.append(comparison.row("rollout_arithmetic", "the engine on bf16 weights, in fp32", "in bf16", "useful tokens"))
    record("rollout", arguments, rows, figures)
    return 0


def ours(task: Task, seed: int) -> Lengths:
    return task.sample(seed)[1].sum(1)


def same_batch(task: Task, seed: int) -> Lengths:
    torch.manual_seed(seed)
    return plain_rollout.generate(*_plain(task))[1].sum(1)


def per_activation(task: Task, seed: int) -> Lengths:
    torch.manual_seed(seed)
    return plain_rollout.generate_each(*_plain(task))[1].sum(1)


def _plain(task: Task) -> tuple[Any, ...]:
    return task.model, task.prompts, task.samples, task.stop_ids, task.pad_id, task.max_new_tokens


def measure(task: Task, others: dict[str, Sampler], repeats: int) -> tuple[list[Row], dict[str, Any]]:
    """The engine against each alternative, with lengths; how close it gets to the limit, and what takes the rest."""
    shape = f"{len(task.prompts)} x {task.samples}, prompt {task.prompts.shape[1]}, up to {task.max_new_tokens} tokens"
    dtype = str(task.prompts.dtype).removeprefix("torch.")
    title = f"rollout, {task.about}, {shape}, {dtype}" + (" weights, in fp32" if task.dtype else "")
    rows: list[Row] = []
    lengths = {}
    for against, other in others.items():
        drawn: dict[str, list[Tensor]] = {"ours": [], "other": []}
        comparison = alternate(counted(task, ours, drawn["ours"]), counted(task, other, drawn["other"]), repeats)
        name = task.name if other is same_batch else f"{task.name}_{other.__name__}"
        rows.append(comparison.row(f"rollout_{name}", title, against, "useful tokens"))
        lengths[name] = {way: spread(torch.cat(found), task.max_new_tokens) for way, found in drawn.items()}
    limit, needed = share_of_limit(task, rows[0]["ours"])
    figures = {"lengths": lengths, "stop_ids": len(task.stop_ids), "operations": needed}
    rows.insert(1, bound(rows[0], lambda: ours(task, 0)))
    return [*rows, limit], figures | {"profile": costliest(lambda: ours(task, 0))}


def counted(task: Task, sampler: Sampler, drawn: list[Tensor]) -> Run:
    """Another seed each time; lengths are kept, their sum is the work."""

    def run() -> float:
        drawn.append(sampler(task, len(drawn)))
        return float(drawn[-1].sum())

    return run


def share_of_limit(task: Task, useful_per_second: float) -> tuple[Row, dict[str, float]]:
    """Operations with weights in all of a rollout, over what a plain product of the decode's shape does meanwhile."""
    useful = float(ours(task, 0).sum())
    needed = operations(lambda: ours(task, 0))
    reached = needed["weights"] / useful * useful_per_second / 1e9
    limit = decode_limit(task.model, task.rows, task.dtype) / 1e9
    config = body(task.model).config
    width, inner = config.hidden_size, config.intermediate_size
    row = {
        "key": f"gemm_share_{task.name}",
        "what": f"operations while sampling, {task.about}",
        "against": f"a plain product [{task.rows} {width}] x [{width} {inner}]",
        "unit": "GFLOP/s",
        "ours": reached,
        "other": limit,
        "ratio": reached / limit,
    }
    return row, needed


def spread(lengths: Lengths, cap: int) -> dict[str, float]:
    """How long the samples were, in tokens."""
    low, middle, high = lengths.float().quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
    at_cap = float((lengths == cap).float().mean())
    return {"mean": float(lengths.float().mean()), "p10": low, "median": middle, "p90": high, "at_cap": at_cap}


if __name__ == "__main__":
    sys.exit(main())
