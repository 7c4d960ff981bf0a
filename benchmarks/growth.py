"""How the engine's rollout time grows with activations, samples, new tokens, prompt length and model size.

    python benchmarks/growth.py

A small random Llama, one thing varied at a time, nothing stops early. The slope of log time over log size is that of a
least-squares line: 1 is linear, less is better. Costs that do not grow flatten it, so the slope between the two largest
sizes is written down too.
"""

import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import torch
from models import Size, parameters
from tasks import Task, random_task
from timing import ROOT, Row, options, pin, record

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BASE = Size(d_model=256, blocks=4, heads=4, kv_heads=2, intermediate=768, vocab=2048)
DEFAULT = {"activations": 8, "samples": 4, "new tokens": 32, "prompt tokens": 64, "width": BASE.d_model}
VARIED = {
    "activations": (4, 8, 16, 32, 64),
    "samples": (2, 4, 8, 16, 32),
    "new tokens": (16, 32, 64, 128),
    "prompt tokens": (32, 64, 128, 256, 512),
    "width": (128, 256, 384, 512, 768),
}
AXES = {"width": "parameters"}  # what is plotted where it is not the thing varied


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--figure", type=Path, default=ROOT / "docs/figures/rollout_growth.png")
    arguments = parser.parse_args()
    pin(arguments.core)
    figures: dict[str, Any] = {"default": DEFAULT}
    rows: list[Row] = []
    for name, values in VARIED.items():
        axis = AXES.get(name, name)
        shapes = [DEFAULT | {name: value} for value in (values[:2] if arguments.quick else values)]
        tasks = [task_of({key: shrunk(key, size) for key, size in s.items()} if arguments.quick else s) for s in shapes]
        sizes = [parameters(task.model) if axis == "parameters" else shape[name] for task, shape in zip(tasks, shapes)]
        seconds = in_turn(tasks, arguments.repeats)
        growth = slope(sizes, seconds)
        figures[axis] = {
            "size": sizes,
            "seconds": seconds,
            "slope": growth,
            "last_slope": slope(sizes[-2:], seconds[-2:]),
        }
        row = {"key": f"growth_{axis.replace(' ', '_')}", "what": f"growth of a rollout's time with {axis}"}
        rows.append(row | {"against": "linear", "unit": "", "ours": growth, "other": 1.0, "ratio": growth})
    record("growth", arguments, rows, figures)
    draw({axis: figure for axis, figure in figures.items() if axis != "default"}, arguments.figure)
    return 0


def shrunk(name: str, value: int) -> int:
    """For `--quick`."""
    return value // 4 if name in ("new tokens", "width") else value // 2


def task_of(shape: dict[str, int]) -> Task:
    d_model = shape["width"]
    size = replace(BASE, d_model=d_model, intermediate=3 * d_model)
    length = shape["prompt tokens"]
    activations, samples, new_tokens = (shape[name] for name in ("activations", "samples", "new tokens"))
    return random_task(size, activations, samples, new_tokens, length, length * 3 // 4, torch.float32)


def in_turn(tasks: Sequence[Task], repeats: int) -> list[float]:
    """Median seconds of each; all in turn, so that a slower minute meets all."""
    taken: list[list[float]] = [[] for _ in tasks]
    for repeat in range(repeats + 1):
        for task, seconds in zip(tasks, taken):
            started = time.perf_counter()
            task.sample(repeat)
            if repeat:
                seconds.append(time.perf_counter() - started)
    return [statistics.median(seconds) for seconds in taken]


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    line = statistics.linear_regression([math.log(size) for size in sizes], [math.log(second) for second in seconds])
    return line.slope


def draw(figures: dict[str, dict[str, Any]], path: Path) -> None:
    """Time over size, both logarithmic, beside a line of slope 1."""
    figure, axes = plt.subplots(1, len(figures), figsize=(3.4 * len(figures), 3.2), layout="constrained")
    for place, (name, found) in zip(axes, figures.items()):
        sizes, seconds = found["size"], found["seconds"]
        place.loglog(
            sizes, seconds, marker="o", label=f"slope {found['slope']:.2f}, at the end {found['last_slope']:.2f}"
        )
        linear = [seconds[-1] * size / sizes[-1] for size in sizes]
        place.loglog(sizes, linear, linestyle=":", color="grey", label="linear")
        place.set(xlabel=name, ylabel="seconds per rollout", title=name)
        place.set_xticks(sizes, [f"{size / 1e6:.0f}M" if size >= 1e6 else str(size) for size in sizes])
        place.minorticks_off()
        place.legend(fontsize=7)
        place.grid(alpha=0.3, which="both")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
