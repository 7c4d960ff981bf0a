"""The plan as printed tables."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from nla.planning.facts import GIB

COLUMNS = ("weights", "gradients", "optimizer", "activations", "cache", "buffers")


def print_plan(plan: Mapping[str, Any], console: Console) -> None:
    """Parameters, memory by phase, time and cost, then what to know."""
    _parameters(plan, console)
    _memory(plan, console)
    _time(plan, console)
    console.print(_costs(plan), soft_wrap=True)
    usable = plan["usable_bytes"] / GIB
    if plan["fits"]:
        console.print(f"[bold]It fits[/] ({usable:.1f} GiB usable). Sampling: {plan['gather_why']}.", soft_wrap=True)
    else:
        console.print(f"[bold]It does not fit[/] ({usable:.1f} GiB usable). What would:", soft_wrap=True)
        for change in plan["changes"]:
            console.print(f"  - {change}", soft_wrap=True, highlight=False)
    for title, key in (("Where the design ends", "limits"), ("Assumed", "assumed")):
        for index, line in enumerate(plan[key]):
            console.print(f"{title}:" if index == 0 else "", end="\n" if index == 0 else "")
            console.print(f"  - {line}", soft_wrap=True, highlight=False)


def _parameters(plan: Mapping[str, Any], console: Console) -> None:
    model, layout = plan["model"], plan["layout"]
    adapter = "all weights" if plan["adapter"] is None else f"LoRA of rank {plan['adapter']['rank']}"
    console.print(
        f"[bold]{plan['name']}[/]: {model['id']} ({model['type']}), {number(model['model'])} parameters, "
        f"{number(model['active'])} active per token; layer {model['layer']} of {model['blocks']}, "
        f"d_model {model['d_model']}; reconstructor {number(model['reconstructor'])}; {adapter}",
        soft_wrap=True,
        highlight=False,
    )
    console.print(
        f"{layout['gpus']} x {plan['device']}, {layout['strategy']}, weights of {layout['weight']} bytes, "
        f"products in {layout['compute']}, checkpointing {'on' if layout['checkpointing'] else 'off'}",
        soft_wrap=True,
        highlight=False,
    )


def _memory(plan: Mapping[str, Any], console: Console) -> None:
    table = Table("stage", "phase", *COLUMNS, "total", title="GiB on the fullest GPU")
    for stage in plan["stages"]:
        for phase, memory in stage["memory"].items():
            mark = "" if memory["total"] <= plan["usable_bytes"] else " (too much)"
            cells = [f"{memory[name] / GIB:.2f}" for name in COLUMNS]
            table.add_row(stage["stage"], phase, *cells, f"{memory['total'] / GIB:.2f}{mark}")
    console.print(table)


def _time(plan: Mapping[str, Any], console: Console) -> None:
    phases = ("read", "sample", "update", "step")
    table = Table(
        "stage", "steps", "FLOPs/step", *(f"{part} s" for part in phases), "s/step", "MFU", "hours", title="Time"
    )
    for stage in plan["stages"]:
        seconds = stage["seconds"]
        table.add_row(
            stage["stage"],
            str(stage["steps"]),
            f"{sum(stage['flops'].values()):.2e}",
            *(short(seconds[part]) if part in seconds else "" for part in phases),
            short(stage["step_seconds"]),
            f"{stage['mfu']:.0%}",
            short(stage["hours"]),
        )
    console.print(table)


def _costs(plan: Mapping[str, Any]) -> str:
    disk, teacher, money = plan["disk"], plan["teacher"], plan["currency"]
    return (
        f"{short(plan['hours'])} hours, {short(plan['gpu_hours'])} GPU-hours, {plan['cost']:,.2f} {money}. Disk: "
        f"{size(disk['checkpoint'])} a checkpoint, {size(disk['pair'])} the pair, {size(disk['activations'])} if the "
        f"{number(disk['rows'])} activations are prepared. A paid teacher for {number(teacher['texts'])} texts: "
        f"{teacher['cost']:,.2f} {money} ({number(teacher['tokens_in'])} tokens in, "
        f"{number(teacher['tokens_out'])} out)."
    )


def number(value: float) -> str:
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.2f} {name}"
    return f"{value:.0f}"


def size(value: float) -> str:
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB")):
        if value >= unit:
            return f"{value / unit:.1f} {name}"
    return f"{value / 1024:.0f} KiB"


def short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
