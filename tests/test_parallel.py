"""One process, DDP and FSDP2 on real gloo processes: the same tokens, weights and metrics, and nobody waits forever."""

import functools
import json
import multiprocessing
import os
import shutil
import socket
import sys
import time
from pathlib import Path

import parallel_workers
import pytest
import torch
from conftest import MARKER, TEMPLATES
from safetensors.torch import load_file

from nla.autoencoder import NLA
from nla.target import Target

STAGES = ("verbalizer", "reconstructor", "joint")
SETUPS = {  # strategy and ranks
    "one": ("one", 1),
    "ddp2": ("ddp", 2),
    "fsdp2": ("fsdp2", 2),
    "fsdp4": ("fsdp2", 4),
    "blocks2": ("fsdp2-blocks", 2),  # weights gathered block by block while sampling; activations checkpointed
}
SEVERAL = [name for name in SETUPS if name != "one"]
LONGEST = 150  # seconds that ranks may take, on a busy machine


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(ranks: int, strategy: str, work: Path, task: str, out: Path) -> None:
    """Run a task on so many ranks; fails when one of them does, or when they hang."""
    codes = exit_codes(ranks, strategy, work, task, out)
    assert codes == [0] * ranks, f"{task} with {strategy}: exit codes {codes}"


def exit_codes(ranks: int, strategy: str, work: Path, task: str, out: Path, grace: float = 0.0) -> list[int | None]:
    """How each rank ended; None: it had not, so many seconds after the first that failed."""
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # of the server, which loads the libraries once for all
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["parallel_workers"])
    out.mkdir(parents=True, exist_ok=True)
    arguments = (ranks, free_port(), strategy, str(work), task, str(out))
    processes = [context.Process(target=parallel_workers.on_rank, args=(rank, *arguments)) for rank in range(ranks)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + LONGEST
    while any(process.exitcode is None for process in processes) and time.monotonic() < deadline:
        if any(process.exitcode for process in processes):
            deadline, grace = min(deadline, time.monotonic() + grace), LONGEST
        time.sleep(0.05)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes


@pytest.fixture(scope="module")
def work(tiny_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny pair that is warm enough to write well-formed explanations of different lengths."""
    folder = tmp_path_factory.mktemp("parallel")
    pair = NLA.from_target(tiny_folder, 1, TEMPLATES, MARKER)
    target = Target.from_pretrained(tiny_folder, 1)
    optimizer = functools.partial(torch.optim.AdamW, lr=1e-2)
    stage = parallel_workers.stage_of("verbalizer", pair, target, steps=50, optimizer=optimizer)
    trainer = parallel_workers.trainer_of(1, "one", folder, max_steps=50, limit_val_batches=0)
    trainer.fit(stage, parallel_workers.data_of(target, "warm_start"))
    pair.save_pretrained(folder / "pair")
    return folder


@pytest.fixture(scope="module")
def results(work: Path) -> dict[str, Path]:
    for name, (strategy, ranks) in SETUPS.items():
        start(ranks, strategy, work, "every_stage", work / name)
    return {name: work / name for name in SETUPS}


def compare(alone: Path, together: Path) -> None:
    """Every weight of two exported pairs."""
    compared = 0
    for file in alone.glob("*/*.safetensors"):
        expected, found = load_file(file), load_file(together / file.relative_to(alone))
        assert set(expected) == set(found)
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-5)
            compared += 1
    assert compared > 40


def metrics(folder: Path, stage: str) -> dict[str, float]:
    found = json.loads((folder / f"{stage}.metrics.json").read_text())
    return {key: value for key, value in found.items() if "seconds" not in key}


@pytest.mark.parametrize("setup", SEVERAL)
@pytest.mark.parametrize("stage", STAGES)
def test_weights_after_some_steps_are_those_of_one_process(results: dict[str, Path], setup: str, stage: str) -> None:
    compare(results["one"] / stage, results[setup] / stage)


@pytest.mark.parametrize("setup", SEVERAL)
@pytest.mark.parametrize("stage", STAGES)
def test_metrics_are_those_of_one_process(results: dict[str, Path], setup: str, stage: str) -> None:
    alone, together = metrics(results["one"], stage), metrics(results[setup], stage)
    assert together == pytest.approx(alone, abs=2e-5, rel=1e-5)


@pytest.mark.parametrize("setup", SEVERAL)
def test_the_ranks_together_sample_what_one_process_samples(results: dict[str, Path], setup: str) -> None:
    ranks = SETUPS[setup][1]
    alone = parallel_workers.sampled(results["one"], 1)
    assert parallel_workers.sampled(results[setup], ranks) == alone
    assert len({len(tokens) for tokens in alone[0]}) > 1  # of different lengths


def test_the_stages_have_learned(results: dict[str, Path], work: Path) -> None:
    """So that the comparisons above compare something."""
    before = load_file(work / "pair/verbalizer/model.safetensors")
    after = load_file(results["one"] / "joint/verbalizer/model.safetensors")
    assert max(float((after[name] - before[name]).abs().max()) for name in before) > 1e-3
    found = metrics(results["one"], "joint")
    assert found["joint/well_formed"] > 0 and found["joint/kl"] > 0 and found["joint/equal_groups"] < 1


@pytest.fixture(scope="module")
def straight(work: Path) -> Path:
    """Four steps of the joint stage by one process that nothing has interrupted."""
    start(1, "one", work, "four_steps", work / "straight")
    return work / "straight/joint"


@pytest.fixture(scope="module")
def saved(work: Path) -> dict[str, Path]:
    """Checkpoints of two ranks after two steps."""
    for strategy in ("ddp", "fsdp2"):
        start(2, strategy, work, "two_steps", work / f"saved-{strategy}")
    return {strategy: work / f"saved-{strategy}/checkpoints" for strategy in ("ddp", "fsdp2")}


@pytest.mark.parametrize(
    ("before", "strategy", "ranks"),
    [("ddp", "one", 1), ("ddp", "ddp", 4), ("ddp", "fsdp2", 2), ("fsdp2", "fsdp2", 1), ("fsdp2", "fsdp2", 4)],
)
def test_a_checkpoint_of_two_ranks_goes_on_with_others(
    work: Path, saved: dict[str, Path], straight: Path, tmp_path: Path, before: str, strategy: str, ranks: int
) -> None:
    """Case 9: of another world size."""
    shutil.copytree(saved[before], tmp_path / "checkpoints")
    start(ranks, strategy, work, "four_steps", tmp_path)
    assert (tmp_path / "resumed.txt").read_text().endswith("000002/state")
    compare(straight, tmp_path / "joint")


def test_shares_of_two_ranks_are_refused_where_they_cannot_be_put_together(
    work: Path, saved: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(saved["fsdp2"], tmp_path / "checkpoints")
    start(1, "one", work, "four_steps", tmp_path)
    assert "saved in shares by 2 ranks" in (tmp_path / "refused.txt").read_text()
    assert not (tmp_path / "joint").exists()


def test_adapters_on_shared_weights_train_the_same_under_ddp(work: Path, tmp_path: Path) -> None:
    start(1, "one-lora", work, "four_steps", tmp_path / "one")
    start(2, "ddp-lora", work, "four_steps", tmp_path / "two")
    compare(tmp_path / "one/joint", tmp_path / "two/joint")


def test_ranks_and_addresses_come_from_slurm(work: Path, straight: Path, tmp_path: Path) -> None:
    start(2, "ddp", work, "under_slurm", tmp_path)
    compare(straight, tmp_path / "joint")
    for rank in range(2):
        found = json.loads((tmp_path / f"slurm-{rank}.json").read_text())
        assert (found["rank"], found["ranks"]) == (rank, 2)
        assert "started were 2" in found["refused"]
