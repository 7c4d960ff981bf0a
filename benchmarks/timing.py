"""The harness of the benchmarks: two ways of doing the same, alternated in one process on one core, and a record.

A script prints its ratios and writes them to `benchmarks/results/<name>.json` with command, date, machine and versions;
`benchmarks/table.py` makes the table of docs/records/benchmarks.md from these files.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

Run = Callable[[], float]  # does its work and says how much that was: tokens, documents, 1 for a whole step
Row = dict[str, Any]  # one line of the table: key, what, against, unit, ours, other, ratio


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds and work of each repeat of one way."""

    seconds: list[float]
    work: list[float]

    @property
    def rate(self) -> float:
        """Median work per second."""
        return statistics.median(work / seconds for work, seconds in zip(self.work, self.seconds))


@dataclass(frozen=True, slots=True)
class Comparison:
    ours: Times
    other: Times

    def row(self, key: str, what: str, against: str, unit: str) -> Row:
        """A line of the table with all times. Unit `s`: median seconds, else `unit` per second; ratio: times faster."""
        ours, other = self.ours, self.other
        shown = [statistics.median(way.seconds) if unit == "s" else way.rate for way in (ours, other)]
        return {
            "key": key,
            "what": what,
            "against": against,
            "unit": unit if unit == "s" else f"{unit}/s",
            "ours": shown[0],
            "other": shown[1],
            "ratio": ours.rate / other.rate,
            "seconds": {"ours": ours.seconds, "other": other.seconds},
            "work": {"ours": ours.work, "other": other.work},
        }


def alternate(ours: Run, other: Run, repeats: int = 5) -> Comparison:
    """Both once to warm up, then in turn, so that what slows the machine meets both."""
    taken: dict[str, tuple[list[float], list[float]]] = {"ours": ([], []), "other": ([], [])}
    for repeat in range(repeats + 1):
        for name, run in (("ours", ours), ("other", other)):
            started = time.perf_counter()
            work = run()
            seconds = time.perf_counter() - started
            if repeat:
                taken[name][0].append(seconds)
                taken[name][1].append(work)
    return Comparison(Times(*taken["ours"]), Times(*taken["other"]))


def options(purpose: str | None) -> argparse.ArgumentParser:
    """What every script takes."""
    parser = argparse.ArgumentParser(description=(purpose or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each way, after one to warm up")
    parser.add_argument("--core", type=int, help="the one core that is used; default: the first that is allowed")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works; no figure to be quoted")
    parser.add_argument(
        "--output", type=Path, help="folder of the JSON; default: benchmarks/results, runs/benchmarks for --quick"
    )
    return parser


def pin(core: int | None) -> None:
    """This process to one core (where the system can do that) and torch to one thread."""
    import torch  # the programs that only read results do without it

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0)) if core is None else core})
    torch.set_num_threads(1)


def record(
    name: str,
    arguments: argparse.Namespace,
    rows: Sequence[Row],
    figures: dict[str, Any],
    variant: str = "",
    gpu: str | None = None,
) -> Path:
    """Print the ratios, write `<name><variant>.json`. `figures`: whatever else was measured."""
    written = {
        "benchmark": name,
        "command": command(name),
        "date": datetime.date.today().isoformat(),
        "machine": machine() | ({"gpu": gpu} if gpu else {}),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "transformers")},
        },
        "quick": arguments.quick,
        "repeats": arguments.repeats,
        "rows": list(rows),
        "figures": figures,
    }
    folder: Path = arguments.output or (ROOT / "runs" / "benchmarks" if arguments.quick else RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}{variant}.json"
    path.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for row in rows:
        ours, other = (f"{row[way]:.4g} {row['unit']}".strip() for way in ("ours", "other"))
        print(f"{row['what']}: {ours}; {row['against']}: {other}; ratio {row['ratio']:.2f}")
    return path


def command(name: str) -> str:
    """As it was called, without the folders of this machine."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{name}.py", *words])


def machine() -> dict[str, Any]:
    """What it ran on. A load above the cores in use says that other work disturbed the times."""
    return {"cpu": cpu_model(), "cores": os.cpu_count(), "cores_used": 1, "load": os.getloadavg()[0]}


def cpu_model() -> str:
    about = Path("/proc/cpuinfo")
    if about.is_file():
        for line in about.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
