"""What to change if a plan does not fit, and the limits of the design."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from nla.planning.facts import GIB, Assumptions
from nla.planning.task import Gather, Task

MOST_GPUS = 4096


def gathering(tasks: Sequence[Task], facts: Assumptions) -> tuple[Gather, str]:
    """How each rank gets whole weights for sampling and reading under FSDP2, and why."""
    if tasks[0].layout.strategy != "fsdp":
        return "once", "every GPU has whole weights: nothing is gathered"
    if all(task.gathered_peak("once") <= facts.usable for task in tasks):
        return "once", "the gathered weights fit beside everything else: gathered once per rollout"
    task = next((task for task in tasks if task.rolls_out), tasks[-1])
    blocks = sum(task.seconds(facts, "blocks").values())
    inside = replace(task, layout=replace(task.layout, gpus=facts.gpus_per_node))
    extra = inside.layout.compute * task.shape.parameters / facts.gpus_per_node
    fits = all(task.gathered_peak("blocks") + extra <= facts.usable for task in tasks)
    slow = f"block by block costs {blocks:.0f} s per step of {task.stage}"
    if not task.rolls_out or blocks < 2 * sum(task.seconds(facts, "once").values()):
        return "blocks", f"gathered weights do not fit beside the rest: {slow}"
    if fits:
        parallel = replace(inside, rows=max(1, task.rows * facts.gpus_per_node // task.layout.gpus))
        quick = parallel.seconds(facts, "tensor parallel")["sample"]
        return "tensor parallel", (
            f"gathered weights do not fit and {slow}: tensor parallel inside a node is needed "
            f"({quick:.0f} s of sampling), which this version does not have"
        )
    return "blocks", f"{slow}, and a node of {facts.gpus_per_node} GPUs does not hold the weights beside the rest"


def runnable(gather: Gather) -> Literal["once", "blocks"]:
    """The nearest way that this version has."""
    return "blocks" if gather == "tensor parallel" else gather


def fits(tasks: Sequence[Task], facts: Assumptions) -> bool:
    """Whether the plan runs, with the weights gathered in whichever way fits."""
    return all(min(task.peak("once"), task.peak("blocks")) <= facts.usable for task in tasks)


def changes(tasks: Sequence[Task], facts: Assumptions) -> list[str]:
    """Overrides that make it fit, the smallest change first."""
    overrides = []
    for text, changed in _candidates(tasks, facts):
        peak = max(min(task.peak("once"), task.peak("blocks")) for task in changed)
        if peak <= facts.usable:
            overrides.append(f"{text}: {peak / GIB:.1f} GiB")
    return overrides or [f"no change fits {MOST_GPUS} GPUs of {facts.memory_gib:.0f} GiB"]


def _candidates(tasks: Sequence[Task], facts: Assumptions) -> Iterator[tuple[str, list[Task]]]:
    smallest = max(task.group for task in tasks)
    size = tasks[0].micro_batch // 2
    while size >= smallest:
        smaller = [replace(task, micro_batch=size) for task in tasks]
        if fits(smaller, facts):
            yield f"hardware.micro_batch_size={size}", smaller
            break
        size //= 2
    layout = tasks[0].layout
    least = [replace(task, micro_batch=min(task.micro_batch, max(smallest, 8))) for task in tasks]
    if not layout.checkpointing:
        yield "hardware.activation_checkpointing=true", [task.with_layout(checkpointing=True) for task in tasks]
        yield (
            f"hardware.activation_checkpointing=true hardware.micro_batch_size={least[0].micro_batch}",
            [task.with_layout(checkpointing=True) for task in least],
        )
    if tasks[0].rank is None:
        sizes = [layout.gpus] if layout.strategy != "fsdp" and layout.gpus > 1 else []
        sizes += [n * facts.gpus_per_node for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)]
        for gpus in sizes:
            spread = [task.with_layout(strategy="fsdp", gpus=gpus, checkpointing=True) for task in least]
            if gpus >= layout.gpus and gpus <= MOST_GPUS and fits(spread, facts):
                yield (
                    (
                        f"hardware.trainer.strategy=fsdp2 on {gpus} GPUs, hardware.activation_checkpointing=true "
                        f"hardware.micro_batch_size={least[0].micro_batch}"
                    ),
                    spread,
                )
                break
        lora = [replace(task.with_layout(weight=2), rank=16) for task in least]
        lora = [task.with_layout(strategy="ddp" if layout.gpus > 1 else "single") for task in lora]
        yield f"adapter=lora model.dtype=bfloat16, hardware.micro_batch_size={least[0].micro_batch}", lora
    elif layout.weight == 4:
        yield "model.dtype=bfloat16", [task.with_layout(weight=2) for task in tasks]


def limits(tasks: Sequence[Task], facts: Assumptions) -> list[str]:
    """Where the design would have to change for this plan."""
    last, reasons = tasks[-1], []
    layout, shape = last.layout, last.shape
    whole = layout.compute * shape.parameters
    node = facts.gpus_per_node * facts.usable
    if whole > node:
        reasons.append(
            f"the verbalizer alone is {whole / GIB:.0f} GiB, a node holds {node / GIB:.0f}: sampling needs tensor and "
            "pipeline parallelism over several nodes, 8-bit weights, or a separate inference server that receives the "
            "new weights after each step"
        )
    if last.rank is not None and layout.weight * shape.parameters > facts.usable:
        reasons.append(
            "adapter=lora keeps one whole copy of the base on every GPU and cannot be sharded: a base of this size "
            "needs tensor parallelism, 4-bit weights, or FSDP2 that shards the shared base"
        )
    loads = layout.weight * (shape.parameters * (2 if last.rank is None else 1) + last.lower.parameters)
    host = min(layout.gpus, facts.gpus_per_node) * loads
    if host > facts.host_memory_gib * GIB:
        reasons.append(
            f"every process loads whole models before they are sharded: {host / GIB:.0f} GiB of host memory in each "
            f"node, which has {facts.host_memory_gib:.0f}; weights must be built on the meta device and read by shards"
        )
    idle = [task.stage for task in tasks if task.rows < layout.gpus]
    if idle:
        reasons.append(
            f"{', '.join(idle)}: fewer activations per step than GPUs ({min(t.rows for t in tasks)} < {layout.gpus}): "
            "the others wait; raise batch_size, or give several GPUs to one activation (tensor parallelism)"
        )
    upper = shape.parameters - last.lower.parameters
    if upper * layout.weight / layout.shards > 0.1 * facts.usable:
        reasons.append(
            f"blocks above layer {last.layer} of the target are held and never run: "
            f"{upper * layout.weight / layout.shards / GIB:.1f} GiB per GPU could be dropped"
        )
    for task in tasks:
        seconds = task.seconds(facts, "once")
        computing = task.flops().get("verbalizer", 0) + task.flops().get("reconstructor", 0)
        ideal = computing / (facts.rate(layout.compute) * min(layout.gpus, task.rows) * facts.mfu.train)
        if layout.gpus > 1 and seconds["update"] > 2 * ideal:
            reasons.append(
                f"{task.stage}: the update waits for the network ({seconds['update']:.1f} s, arithmetic "
                f"{ideal:.1f} s): larger micro-batches, or shard inside a node and replicate across nodes (HSDP)"
            )
    return reasons
