"""Soak: a small run is killed at 20 random moments and restarted with the same command; it ends as if it had not been.

python benchmarks/soak.py [--kills 20] [--seed 0] [--log runs/soak.log]

All three stages of a small world run. Every second kill comes while a checkpoint is being written (as soon as its
scratch folder appears), the others at random moments, most of which fall into rollouts; half are SIGKILL, half SIGTERM.
Afterwards the weights of the pair and every line of metrics.csv but its seconds must equal those of a run that was left
alone. Ends with status 1 where they do not.
"""

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("verbalizer", "reconstructor", "joint")
SETTINGS = [
    "experiment=world_smoke", "hardware=cpu", "callbacks.checkpoint.every=1", "callbacks.samples=null",
    "stage.verbalizer.steps=15", "stage.reconstructor.steps=15", "stage.joint.steps=70",
    "stage.verbalizer.trainer.val_check_interval=8", "stage.reconstructor.trainer.val_check_interval=8",
    "stage.joint.trainer.val_check_interval=20", "sampling.group_size=2", "sampling.max_new_tokens=24",
    "callbacks.progress.line_every=1", "logger.tensorboard=null",
]  # fmt: skip


def start(folder: Path) -> subprocess.Popen[bytes]:
    """The same command each time."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(ROOT / "train.py"), *SETTINGS]
    log = (folder / "output.log").open("ab")
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)


def progress(folder: Path) -> str:
    """The last finished step of the last stage that has begun."""
    for stage in reversed(STAGES):
        stage_folder = folder / "runs/world_smoke/stages" / stage
        steps = sorted(int(path.name) for path in stage_folder.glob("checkpoints/[0-9]*"))
        if steps:
            return f"{stage} {steps[-1]}"
    return "nothing saved"


def saving(folder: Path) -> bool:
    return any(folder.glob("runs/world_smoke/stages/*/checkpoints/.*.part"))


def kill_once(folder: Path, choice: random.Random, while_saving: bool, number: signal.Signals) -> str | None:
    """Start the command and end it; what was hit. None where it came to its end before."""
    process, began = start(folder), time.monotonic()
    first, wait = progress(folder), choice.uniform(0.0, 2.0)
    moving: float | None = None  # when this process was seen to take its first step
    while process.poll() is None:
        if moving is None and progress(folder) != first:
            moving = time.monotonic()
        if moving is not None and time.monotonic() - moving > wait and (not while_saving or saving(folder)):
            was_saving = saving(folder)
            process.send_signal(number)
            code = process.wait()
            hit = "during a save" if was_saving else "between saves"
            return (
                f"{number.name} {hit} after {time.monotonic() - began:.1f} s, status {code}, now at {progress(folder)}"
            )
        time.sleep(0.0005 if while_saving else 0.02)
    if process.returncode:
        raise SystemExit(f"the run failed by itself with status {process.returncode}:\n{tail(folder)}")
    return None


def tail(folder: Path) -> str:
    return "\n".join((folder / "output.log").read_text(errors="replace").splitlines()[-15:])


def finish(folder: Path) -> None:
    code = start(folder).wait()
    if code:
        raise SystemExit(f"the last start failed with status {code}:\n{tail(folder)}")


def outcome(folder: Path) -> dict[str, object]:
    """Weights of all pairs, and the lines of each metrics.csv without the seconds."""
    run = folder / "runs/world_smoke"
    found: dict[str, object] = {
        str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*.safetensors"))
    }
    for stage in STAGES:
        with (run / "stages" / stage / "metrics.csv").open() as file:
            rows = [{k: v for k, v in row.items() if "seconds" not in k} for row in csv.DictReader(file)]
        found[f"{stage}/metrics.csv"] = rows
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path)
    options = parser.parse_args()
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    choice = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as stage_folder:
        alone, killed = Path(stage_folder, "alone"), Path(stage_folder, "killed")
        alone.mkdir()
        killed.mkdir()
        finish(alone)
        numbers = [signal.SIGKILL, signal.SIGTERM] * -(-options.kills // 2)
        done = 0
        for kill, number in enumerate(numbers[: options.kills], start=1):
            hit = kill_once(killed, choice, while_saving=kill % 4 in (1, 2), number=number)
            if hit is None:
                break
            say(f"{kill:2d}  {hit}")
            done = kill
        finish(killed)
        expected, found = outcome(alone), outcome(killed)
        differing = [name for name in expected if expected[name] != found.get(name)] + sorted(
            set(found) - set(expected)
        )
        say(f"{done} kills; {len(expected)} files compared with the run left alone, {len(differing)} differ")
        for name in differing:
            say(f"differs: {name}")
    if options.log:
        options.log.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if differing or done < options.kills else 0


if __name__ == "__main__":
    sys.exit(main())
