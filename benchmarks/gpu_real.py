"""A real language model on one GPU: SmolLM2-135M read by the commands that a user types, in minutes.

    python benchmarks/gpu_real.py                    # experiment=smollm2_gpu: prepare, warm starts, joint training
    python benchmarks/gpu_real.py --explore          # warm starts side by side: layers, rates, adapters or all weights
    python benchmarks/gpu_real.py --quick            # the same path at a size for a test, on the CPU

Each step is a program of its own, started as from a shell. `--minutes` ends what still runs then; what was measured so
far is reported. Results: `<out>/<name>.json`, with the log of every program beside it.
"""

import argparse
import csv
import datetime
import json
import math
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from timing import ROOT, cpu_model

from nla.config.check import check_train
from nla.config.compose import compose
from nla.models.target import Target
from nla.training.build import starting_pair

TEXTS = ["data=sotu", "corpus=data", "teacher=self_short", "prepare.positions_per_document=6", "prepare.min_context=3"]
LAYERS = (10, 15, 20)
HALVES = ("verbalizer", "reconstructor")
RATES = ("1e-4", "4e-4")  # of the verbalizer in joint training
GRACE = 20.0  # seconds to save a checkpoint in


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--explore", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no program runs on")
    parser.add_argument("--chunks", type=int, default=None, help="pieces of each speech; none: all")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "gpu_real")
    parser.add_argument("--pairs", type=Path, help="make pairs of a run's results in this folder, and nothing else")
    parser.add_argument("overrides", nargs="*", help="of train.py, for the whole recipe")
    arguments = parser.parse_args()
    if arguments.pairs is not None:
        make_pairs(arguments.pairs, arguments.work)
        return 0
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
        open_, asked = list(started), set[str]()
        while open_:
            for one in list(open_):
                name, begun, process = one
                late = time.time() - self.deadline
                if process.poll() is None and late > 0 and name not in asked:
                    asked.add(name)
                    process.terminate()  # train.py saves its step and ends
                if process.poll() is None and late > GRACE:
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
    """Texts, both warm starts, then joint training at two rates side by side until the deadline.

    What was trained is written in bf16: the warm start, and the joint run whose last validation is best. `--pairs`
    makes pairs of it on any machine, for evaluate.py.
    """
    steps = small() if arguments.quick else []
    if not run.wait(prepare(run, arguments, "texts", (20,))):
        return
    trained = run.wait(train(run, arguments, "warm", "texts", "stages=[verbalizer,reconstructor]", *steps))
    warm = arguments.work / "warm"
    run.figures["warm"]["validation"] = validation(warm)
    for half in HALVES:  # also what a deadline has cut short
        save_trained(warm / "stages" / half, half, arguments.out / f"warm-{half}.safetensors")
    if not trained:
        return
    joint = ["stages=[joint]", f"nla={warm / 'nla'}", "callbacks.checkpoint.every=1000"]
    joint += [*steps, "stage.joint.steps=100000"]
    started = [
        train(run, arguments, f"joint-{rate}", "texts", *joint, f"stage.joint.optimizer.lr={rate}") for rate in RATES
    ]
    run.wait(*started)
    for rate in RATES:
        run.figures[f"joint-{rate}"]["validation"] = validation(arguments.work / f"joint-{rate}")
    best = max(RATES, key=lambda rate: last_fve(run.figures[f"joint-{rate}"]["validation"]))
    run.figures["best"] = best
    for half in HALVES:
        stage = arguments.work / f"joint-{best}" / "stages" / "joint"
        run.figures["step"] = save_trained(stage, half, arguments.out / f"joint-{half}.safetensors")


def save_trained(stage: Path, half: str, path: Path) -> int | None:
    """One half's trained weights from the newest checkpoint of a stage, in bf16; the checkpoint's step."""
    saved = sorted(stage.glob("checkpoints/[0-9]*"))
    if not saved:
        return None
    state = torch.load(saved[-1] / "state", map_location="cpu", weights_only=True)["state_dict"]
    weights = {name: value.to(torch.bfloat16) for name, value in state.items() if name.startswith(f"nla.{half}.")}
    save_file(weights, path)
    return int(saved[-1].name)


def make_pairs(folder: Path, work: Path) -> None:
    """The pairs of a run's results, `warm` and `joint` in `work`, laid out as a run of train.py."""
    settings = check_train(compose("train", ["experiment=smollm2_gpu", f"data.path={folder}"]))
    settings = settings.changed(layer__index=20)
    target = Target.from_pretrained(settings.model.id, 20, "float32")
    for name, stage in (("warm", "reconstructor"), ("joint", "joint")):
        pair = starting_pair(settings, None, target)
        state = {}
        for half in HALVES:
            path = folder / f"{name}-{half}.safetensors"
            state |= {key.removeprefix("nla."): value.float() for key, value in load_file(path).items()}
        wrong = set(state) - {key for key, weight in pair.state_dict().items()}
        if wrong:
            raise SystemExit(f"{folder}: weights that the pair does not have, such as {sorted(wrong)[0]}")
        pair.load_state_dict(state, strict=False)
        pair.save_pretrained(work / "stages" / stage / "nla", stage=stage)
        print(work / "stages" / stage / "nla", len(state), "tensors")


def last_fve(logged: dict[str, list[dict[str, float]]]) -> float:
    found = [row["joint/validation/fve"] for row in logged.get("joint", []) if "joint/validation/fve" in row]
    return found[-1] if found else -math.inf


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
