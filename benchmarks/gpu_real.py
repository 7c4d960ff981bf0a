"""A real language model on one GPU: SmolLM2-135M read by the commands that a user types, in minutes.

    python benchmarks/gpu_real.py                    # experiment=smollm2_gpu: prepare, train, evaluate
    python benchmarks/gpu_real.py --explore          # warm starts side by side: layers, rates, adapters or all weights
    python benchmarks/gpu_real.py --quick            # the same path at a size for a test, on the CPU

Each step is a program of its own, started as from a shell. `--minutes` ends what still runs then; what was measured so
far is reported. Results: `<out>/<name>.json`, with the log of every program beside it.
"""

import argparse
import csv
import datetime
import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from timing import ROOT, cpu_model

TEXTS = ["data=sotu", "corpus=data", "teacher=self", "prepare.positions_per_document=6", "prepare.min_context=3"]
LAYERS = (10, 15, 20)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--explore", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no program runs on")
    parser.add_argument("--chunks", type=int, default=None, help="pieces of each speech; none: all")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "gpu_real")
    parser.add_argument("overrides", nargs="*", help="of train.py, for the whole recipe")
    arguments = parser.parse_args()
    run = Programs(arguments)
    (explore if arguments.explore else recipe)(run, arguments)
    run.write("explore" if arguments.explore else "recipe")
    return 0


class Programs:
    """Programs started from a shell, their seconds, and one deadline for all."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.started = arguments, time.time()
        self.deadline = self.started + 60 * arguments.minutes
        self.figures: dict[str, Any] = {}
        arguments.work.mkdir(parents=True, exist_ok=True)
        arguments.out.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, *command: str) -> tuple[str, float, subprocess.Popen]:
        log = (self.arguments.work / f"{name}.log").open("w")
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        threads = "1" if torch.cuda.is_available() else "2"
        env = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(paths)}
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=log, stderr=log, env=env)
        return name, time.time(), process

    def wait(self, *started: tuple[str, float, subprocess.Popen]) -> bool:
        """Until all have ended, or the deadline; whether all ended well."""
        open_ = list(started)
        while open_:
            for one in list(open_):
                name, begun, process = one
                late = time.time() > self.deadline
                if process.poll() is None and late:
                    process.kill()
                    process.wait()
                if process.poll() is not None:
                    open_.remove(one)
                    self.figures[name] = {"seconds": time.time() - begun, "rc": process.returncode}
                    print(f"{time.time() - self.started:6.0f} s  {name}: {self.figures[name]}", flush=True)
            time.sleep(0.2)
        return all(process.returncode == 0 for _, _, process in started)

    def write(self, name: str) -> None:
        record = {
            "command": " ".join(["python", "benchmarks/gpu_real.py", *sys.argv[1:]]),
            "date": datetime.date.today().isoformat(),
            "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "device": device()},
            "versions": {package: version(package) for package in ("torch", "transformers")},
            "seconds": time.time() - self.started,
        }
        path = self.arguments.out / f"gpu_real_{name}.json"
        path.write_text(json.dumps({**record, "programs": self.figures}, indent=1) + "\n")
        print(path, f"{time.time() - self.started:.0f} s")


def prepare(run: Programs, arguments: argparse.Namespace, name: str, layers: tuple[int, ...], *overrides: str) -> Any:
    chunks = 1 if arguments.quick else arguments.chunks
    fewer = ["prepare.positions_per_document=1"] if arguments.quick else []
    return run.start(
        name, "-m", "nla.commands.cli", "prepare", "experiment=smollm2_gpu", *TEXTS, *fewer, *hardware(),
        f"prepare.layers=[{','.join(map(str, layers))}]", f"prepare.out={arguments.work / name}",
        f"data.source.max_chunks={'null' if chunks is None else chunks}", *overrides,
    )  # fmt: skip


def explore(run: Programs, arguments: argparse.Namespace) -> None:
    """Warm starts side by side on one GPU, each with its validation figures: rates, layers, each line alone."""
    said, following = ["teacher.expected=0", "teacher.continued=0"], ["teacher.quoted=0"]
    texts = [
        prepare(run, arguments, "texts", LAYERS),
        prepare(run, arguments, "said", (20,), "teacher.about=0", *said),
        prepare(run, arguments, "next", (20,), "teacher.about=0", *following),
    ]
    if not run.wait(*texts):
        return
    full = ["adapter=full", "stage.reconstructor.optimizer.lr=1e-4", "stage.verbalizer.optimizer.lr=1e-4"]
    reconstructor, verbalizer = "stages=[reconstructor]", "stages=[verbalizer]"
    variants = {
        "chain-20": ("texts", []),
        "reconstructor-fast-20": ("texts", [reconstructor, "stage.reconstructor.optimizer.lr=3e-3"]),
        "reconstructor-full-20": ("texts", [reconstructor, *full]),
        "reconstructor-15": ("texts", [reconstructor, "layer.index=15"]),
        "reconstructor-10": ("texts", [reconstructor, "layer.index=10"]),
        "reconstructor-said-20": ("said", [reconstructor]),
        "reconstructor-next-20": ("next", [reconstructor]),
        "verbalizer-full-20": ("texts", [verbalizer, *full]),
    }
    steps = small() if arguments.quick else []
    run.wait(*(train(run, arguments, name, texts, *overrides, *steps) for name, (texts, overrides) in variants.items()))
    for name in variants:
        run.figures[name]["validation"] = validation(arguments.work / name)


def train(run: Programs, arguments: argparse.Namespace, name: str, texts: str, *overrides: str) -> Any:
    return run.start(
        name, "train.py", "experiment=smollm2_gpu", f"data.path={arguments.work / texts}", *hardware(),
        f"name={name}", f"run_dir={arguments.work / name}", *overrides, *arguments.overrides,
    )  # fmt: skip


def recipe(run: Programs, arguments: argparse.Namespace) -> None:
    """The whole recipe, and its evaluation on the test split."""
    folder = arguments.work / "recipe"
    if not run.wait(prepare(run, arguments, "texts", (20,))):
        return
    trained = run.wait(train(run, arguments, "recipe", "texts", *(small() if arguments.quick else [])))
    run.figures["recipe"]["validation"] = validation(folder)
    if trained:
        quick = ["evaluation.documents=8", "evaluation.bootstrap=50"] if arguments.quick else []
        run.wait(run.start("evaluate", "evaluate.py", f"nla={folder / 'nla'}", *hardware(), *quick))
        metrics = folder / "evaluation" / "metrics.json"
        if metrics.is_file():
            run.figures["evaluate"]["metrics"] = json.loads(metrics.read_text())


def hardware() -> list[str]:
    return ["hardware=gpu"] if torch.cuda.is_available() else ["hardware=cpu"]


def small() -> list[str]:
    """Overrides for a test on a CPU."""
    stages = [
        f"stage.{stage}.{key}" for stage in ("verbalizer", "reconstructor", "joint") for key in
        ("steps=2", "data.batch_size=4", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1")
    ]  # fmt: skip
    return [*stages, "sampling.max_new_tokens=12", "sampling.group_size=2", "data.validation_documents=4"]


def validation(folder: Path) -> dict[str, list[dict[str, float]]]:
    """What each stage logged, by stage: rows of step and figures."""
    logged = {}
    for file in sorted(folder.glob("stages/*/metrics.csv")):
        with file.open() as lines:
            rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(lines)]
        logged[file.parent.name] = rows
    return logged


def device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_model()


if __name__ == "__main__":
    raise SystemExit(main())
