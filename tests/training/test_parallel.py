"""One process, DDP and FSDP2 on real gloo processes: the same tokens, weights and metrics, and nobody waits forever."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hydra
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from support import ROOT, parallel_workers
from support.ranks import LONGEST, free_port, start

from nla.config.compose import config_folder
from nla.config.trainer import check_ranks, with_strategy
from nla.errors import ConfigError

STAGES = ("verbalizer", "reconstructor", "joint")
SETUPS = {  # strategy and ranks
    "one": ("one", 1),
    "ddp2": ("ddp", 2),
    "fsdp2": ("fsdp2", 2),
    "fsdp4": ("fsdp2", 4),
    "blocks2": ("fsdp2-blocks", 2),  # weights gathered block by block while sampling; activations checkpointed
}
SEVERAL = [name for name in SETUPS if name != "one"]


@pytest.fixture(scope="module")
def results(work: Path) -> dict[str, Path]:
    for name, (strategy, ranks) in SETUPS.items():
        start(ranks, strategy, work, "every_stage", work / name)
    return {name: work / name for name in SETUPS}


def compare(alone: Path, together: Path) -> None:
    """Every weight of two exported pairs."""
    compared = 0
    for file in alone.rglob("*.safetensors"):
        expected, measured = load_file(file), load_file(together / file.relative_to(alone))
        assert set(expected) == set(measured)
        for name, weight in expected.items():
            torch.testing.assert_close(measured[name], weight, rtol=0, atol=1e-5)
            compared += 1
    assert compared > 40


def metrics(folder: Path, stage: str) -> dict[str, float]:
    measured = json.loads((folder / f"{stage}.metrics.json").read_text())
    # a sharded target is not asked how likely the explanations are
    return {key: value for key, value in measured.items() if "seconds" not in key and "nats_per_token" not in key}


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
    measured = metrics(results["one"], "joint")
    assert measured["joint/well_formed"] > 0 and measured["joint/kl"] > 0 and measured["joint/equal_groups"] < 1


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


def test_the_default_optimizer_takes_the_same_steps_under_fsdp2(work: Path, tmp_path: Path) -> None:
    """From the same gradients AdamW's weights are the same, and Muon's up to its bf16.

    Products of shares round otherwise than whole ones; orthogonalised share by share they would be a third off.
    """
    start(1, "one", work, "muon", tmp_path / "one")
    start(2, "fsdp2", work, "muon", tmp_path / "two")
    begun, alone, together = (
        load_file(folder / "verbalizer/model.safetensors")
        for folder in (work / "pair", tmp_path / "one/pair", tmp_path / "two/pair")
    )
    apart = {
        name: float((together[name] - alone[name]).norm() / (alone[name] - weight).norm())
        for name, weight in begun.items()
    }
    print(apart)
    muon = {name for name in begun if "proj" in name}
    assert len(muon) > 10 and max(apart[name] for name in muon) < 0.05, apart
    assert max(apart[name] for name in begun if name not in muon) < 1e-5, apart


def test_adapters_on_shared_weights_train_the_same_under_ddp(work: Path, tmp_path: Path) -> None:
    start(1, "one", work, "adapters", tmp_path / "one")
    start(2, "ddp", work, "adapters", tmp_path / "two")
    compare(tmp_path / "one/joint", tmp_path / "two/joint")


def test_the_ridge_head_and_the_gate_are_those_of_one_process(work: Path, tmp_path: Path) -> None:
    found = {}
    for strategy, ranks in (("one", 1), ("ddp", 2)):
        out = tmp_path / strategy
        start(ranks, strategy, work, "ridge_and_gate", out)
        found[strategy] = [json.loads((out / f"gate-{rank}.json").read_text()) for rank in range(ranks)]
    compare(tmp_path / "one/reconstructor", tmp_path / "ddp/reconstructor")  # the summary of the activations too
    assert (tmp_path / "ddp/reconstructor/verbalizer/summary/activations.safetensors").is_file()
    assert len(found["one"][0]) == 1 and "own" in found["one"][0][0]
    assert found["ddp"][0] == found["one"][0] and found["ddp"][1] in (found["one"][0], [])


def test_ranks_and_addresses_come_from_slurm(work: Path, straight: Path, tmp_path: Path) -> None:
    start(2, "ddp", work, "under_slurm", tmp_path)
    compare(straight, tmp_path / "joint")
    for rank in range(2):
        measured = json.loads((tmp_path / f"slurm-{rank}.json").read_text())
        assert (measured["rank"], measured["ranks"]) == (rank, 2)
        assert "started were 2" in measured["refused"]


def test_an_evaluation_shared_by_ranks_gives_the_same_files_and_reads_no_row_twice(work: Path, tmp_path: Path) -> None:
    measured = []
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        start(ranks, "one", work, "evaluation", out)
        read = [json.loads((out / f"read-{rank}.json").read_text()) for rank in range(ranks)]
        assert sum(part["read"] for part in read) == read[0]["rows"] == 30
        assert all(part["read"] > 0 for part in read)
        metrics = json.loads((out / "evaluation/metrics.json").read_text())
        del metrics["seconds"]
        measured.append((metrics, pq.read_table(out / "evaluation/samples.parquet")))
    assert measured[0] == measured[1]


def program(*command: str, cwd: Path, status: int = 0) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=LONGEST)
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


SHORT = ["experiment=world_smoke", "stages=[reconstructor]", "stage.reconstructor.steps=2"]
SHORT += ["stage.reconstructor.trainer.val_check_interval=2"]


@pytest.mark.slow
def test_torchrun_trains_on_two_ranks(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", f"--master-port={free_port()}"]
    shown = program(*torchrun, str(ROOT / "train.py"), *SHORT, "hardware=cpu_x2", cwd=tmp_path)
    assert shown.count("reconstructor: 2 steps") == 1  # one rank prints
    assert (tmp_path / "runs/world_smoke/nla/reconstructor/model.safetensors").is_file()


def test_hardware_for_more_ranks_than_were_started_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="needs 16 processes, started were 1: use torchrun --nnodes 2 --nproc-per-node 8"
    ):
        check_ranks({"devices": 8, "num_nodes": 2})


@pytest.mark.slow
def test_a_sweep_goes_through_submitit(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), "-m", "launcher=submitit_local", *SHORT, "layer.index=1"]
    program(*command, cwd=tmp_path)
    (job,) = (tmp_path / "runs/world_smoke/sweep").glob("*layer.index=1*")
    assert (job / "nla/reconstructor/model.safetensors").is_file() and "launcher" not in job.name
    assert list((tmp_path / "runs/world_smoke/sweep/.submitit").rglob("*_log.out"))


def test_the_slurm_launcher_asks_for_a_task_per_gpu() -> None:
    overrides = ["launcher=submitit", "hardware=slurm_h100", "hardware.trainer.num_nodes=4"]
    with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        cfg = hydra.compose("train", overrides, return_hydra_config=True)
    launcher = cfg.hydra.launcher
    assert (launcher.nodes, launcher.tasks_per_node, launcher.gpus_per_node) == (4, 8, 8)


@pytest.mark.parametrize(("adapter", "chosen"), [("full", "ModelParallelStrategy"), ("lora", "str")])
def test_the_strategy_goes_by_the_adapter(adapter: str, chosen: str) -> None:
    trainer = {"strategy": {"full": "fsdp2", "lora": "ddp"}, "devices": 2}
    assert type(with_strategy(trainer, adapter)["strategy"]).__name__ == chosen
    with pytest.raises(ConfigError, match=r"strategy=fsdp2 with adapter=lora.*strategy=ddp"):
        with_strategy({"strategy": "fsdp2"}, "lora")
