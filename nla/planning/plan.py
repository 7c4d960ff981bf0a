"""The plan of a composed config: memory and time of every stage, whether it fits, data, cost; as plain containers."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from nla.config.schema import TrainSettings
from nla.planning import advice
from nla.planning.facts import Assumptions
from nla.planning.memory import count, optimizer_bytes
from nla.planning.reading import shape_summary, tasks_of
from nla.planning.task import Task

TEXT_BYTES = 4.5  # of a token as UTF-8 text


def make_plan(settings: TrainSettings, facts: Assumptions) -> dict[str, Any]:
    """Everything `nla plan` prints: bytes, seconds, FLOPs, money. Raises ConfigError, ModelError."""
    tasks, notes = tasks_of(settings, facts)
    gather, why = advice.gathering(tasks, facts)
    if tasks[0].layout.strategy == "fsdp" and settings.hardware.gather not in ("auto", advice.runnable(gather)):
        why += f"; set hardware.gather={advice.runnable(gather)}"
    stages = [stage_plan(task, facts, advice.runnable(gather)) for task in tasks]
    gpus = tasks[0].layout.gpus
    hours = sum(stage["hours"] for stage in stages)
    fits = advice.fits(tasks, facts)
    return {
        "name": settings.name,
        "model": {"id": settings.model.id, "type": tasks[0].shape.name} | shape_summary(tasks[0].shape, tasks[0].layer),
        "adapter": None if tasks[0].rank is None else {"rank": tasks[0].rank},
        "device": facts.device,
        "layout": asdict(tasks[0].layout),
        "usable_bytes": facts.usable,
        "stages": stages,
        "fits": fits,
        "changes": [] if fits else advice.changes(tasks, facts),
        "gather": gather,
        "gather_why": why,
        "hours": hours,
        "gpu_hours": hours * gpus,
        "cost": hours * gpus * facts.price_per_gpu_hour,
        "currency": facts.currency,
        "disk": disk(tasks),
        "teacher": teacher(tasks, facts),
        "limits": advice.limits(tasks, facts),
        "assumed": notes,
    }


def stage_plan(task: Task, facts: Assumptions, gather: advice.Gather) -> dict[str, Any]:
    phases, seconds, flops = task.phases(gather), task.seconds(facts, gather), task.flops()
    step = sum(seconds.values())
    useful = sum(value for name, value in flops.items() if name not in ("read", "sample"))
    peak = facts.rate(task.layout.compute) * task.layout.gpus
    return {
        "stage": task.stage,
        "steps": task.steps,
        "activations": task.rows,
        "group": task.group,
        "micro_batch": task.micro_batch,
        "micro_batches": task.micro_batches,
        "trainable": count(task.trainable()),
        "memory": {name: asdict(phase) | {"total": phase.total} for name, phase in phases.items()},
        "peak_bytes": task.peak(gather),
        "fits": task.peak(gather) <= facts.usable,
        "flops": flops,
        "seconds": seconds,
        "step_seconds": step,
        "mfu": useful / (peak * step),
        "hours": step * task.steps / 3600,
    }


def disk(tasks: Sequence[Task]) -> dict[str, float]:
    """Bytes on disk: activations if they are prepared (fp32, with their text), one checkpoint, the exported pair."""
    first = tasks[0]
    rows = {task.stage: task.rows * task.steps for task in tasks}
    each = 4 * first.shape.d_model
    row = {task.stage: each + TEXT_BYTES * (task.document + (0 if task.rolls_out else task.response)) for task in tasks}
    layout = first.layout
    halves = [count(first.tensors(half)) for half in ("verbalizer", "reconstructor")]
    base = 0 if first.rank is None else first.shape.parameters
    checkpoint = max(
        (base + sum(halves)) * layout.weight
        + sum(
            optimizer_bytes(
                task.tensors(half), task.inner(half), task.trained_bytes, task.muon[half == "reconstructor"]
            )
            for half in task.trains
        )
        for task in tasks
    )
    lower = first.lower.parameters + first.shape.d_model**2
    return {
        "rows": sum(rows.values()),
        "activations": sum(rows[name] * row[name] for name in rows),
        "checkpoint": checkpoint,
        "pair": (first.shape.parameters + lower) * layout.weight,
    }


def teacher(tasks: Sequence[Task], facts: Assumptions) -> dict[str, float]:
    """What the warm-start texts cost where a paid teacher writes them; both warm starts read the same ones."""
    warm = [task for task in tasks if not task.rolls_out]
    rows = max((task.rows * task.steps for task in warm), default=0)
    document = max((task.document for task in warm), default=0)
    read, written = (
        rows * (facts.teacher.prompt_tokens + document),
        rows * max((task.response for task in warm), default=0),
    )
    cost = (read * facts.teacher.price_in + written * facts.teacher.price_out) / 1e6
    return {"texts": rows, "tokens_in": read, "tokens_out": written, "cost": cost}
