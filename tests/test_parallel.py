"""One process, DDP and FSDP2 on real gloo processes: the same tokens, weights and metrics."""

import json
import os
import sys
import multiprocessing
import socket
from pathlib import Path

import parallel_workers
import pytest
from lightning.pytorch import Trainer
from safetensors.torch import load_file

from nla.autoencoder import NLA
from nla.target import Target

SETUPS = {
    "one": ("one", 1),
    "ddp2": ("ddp", 2),
    "fsdp2": ("fsdp2", 2),
    "fsdp4": ("fsdp2", 4),
    "blocks2": ("fsdp2-blocks", 2),
}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(ranks: int, strategy: str, work: Path, task: str, out: Path) -> None:
    """Run a task on so many ranks, and fail with the first that does."""
    context = multiprocessing.get_context("forkserver")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    context.set_forkserver_preload(["parallel_workers"])
    out.mkdir(parents=True, exist_ok=True)
    arguments = (ranks, free_port(), strategy, str(work), task, str(out))
    processes = [context.Process(target=parallel_workers.on_rank, args=(rank, *arguments)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * ranks


@pytest.fixture(scope="module")
def work(tiny_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pair warm enough to write well-formed explanations of many lengths."""
    from conftest import MARKER, TEMPLATES

    folder = tmp_path_factory.mktemp("parallel")
    pair = NLA.from_target(tiny_folder, 1, TEMPLATES, MARKER)
    target = Target.from_pretrained(tiny_folder, 1)
    stage = parallel_workers.stage_of("verbalizer", pair, target, steps=60, optimizer=warm_optimizer)
    trainer = parallel_workers.trainer_of(1, "one", folder, max_steps=60, val_check_interval=60)
    trainer.fit(stage, parallel_workers.data_of(target, "warm_start"))
    pair.save_pretrained(folder / "pair")
    return folder


def warm_optimizer(groups: list) -> object:
    import torch

    return torch.optim.AdamW(groups, lr=1e-2)


@pytest.fixture(scope="module")
def results(work: Path) -> dict[str, Path]:
    for name, (strategy, ranks) in SETUPS.items():
        import time

        t = time.time()
        start(ranks, strategy, work, "every_stage", work / name)
        print(name, time.time() - t)
    return {name: work / name for name in SETUPS}


@pytest.mark.parametrize("setup", [name for name in SETUPS if name != "one"])
@pytest.mark.parametrize("stage", ["verbalizer", "reconstructor", "joint"])
def test_same(results: dict[str, Path], setup: str, stage: str) -> None:
    one, other = results["one"], results[setup]
    for half in ("verbalizer", "reconstructor"):
        for file in (one / stage / half).glob("*.safetensors"):
            a, b = load_file(file), load_file(other / stage / half / file.name)
            assert set(a) == set(b)
            print(half, file.name, max(float((a[k] - b[k]).abs().max()) for k in a))
    m, n = (json.loads((place / f"{stage}.metrics.json").read_text()) for place in (one, other))
    for key in m:
        print(key, m[key], n[key])
