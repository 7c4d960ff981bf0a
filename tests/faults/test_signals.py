"""Faults 4 and 5 with processes of their own: exit statuses, a second signal, a signal to one rank of two."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import ROOT
from support.programs import Program
from support.runs import overrides, stop

pytestmark = pytest.mark.usefixtures("here")


def start_rank(rank: int, port: int, *arguments: str) -> subprocess.Popen[str]:
    """As torchrun starts a rank of two: Lightning reads the rank when it is imported."""
    environment = {
        **os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests", "OMP_NUM_THREADS": "1",
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def checkpoints(stage: str) -> list[str]:
    return sorted(path.name for path in Path("runs/parts/stages", stage, "checkpoints").iterdir())


@pytest.mark.slow
def test_statuses_and_a_second_signal(tiny_folder: str) -> None:
    """Case 4: SIGTERM ends with 143, Ctrl-C with 130; a second one at once, with the checkpoint before intact."""
    arguments = overrides(tiny_folder, "parts", "reconstructor", 6, **{"callbacks__checkpoint__every": 2})
    for step, number, status in ((3, signal.SIGTERM, 143), (4, signal.SIGINT, 130)):
        process = Program("train.py", *arguments, stop(step, "step", number))
        _, said = process.communicate(timeout=120)
        assert process.returncode == status, said
        assert f"stopped: stage reconstructor stopped by {number.name} after step {step} of 6" in said
        assert "Traceback" not in said and f"{step:06d}" in checkpoints("reconstructor")
    process = Program("train.py", *arguments, stop(5, "twice"))
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGTERM  # which a shell shows as 143
    assert Path("noted").exists() and checkpoints("reconstructor") == ["000003", "000004"]
    process = Program("train.py", *arguments)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    steps = [json.loads(line)["step"] for line in Path("parts.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_a_signal_to_rank_1_alone_saves_the_same_step_on_both(tiny_folder: str) -> None:
    """Case 5: both ranks end with 143 at the same step, without a hang, and one process continues from there."""
    more = {"stage__reconstructor__data__batch_size": 16, "size": 8}
    arguments = overrides(tiny_folder, "parts", "reconstructor", 6, **more)
    alone = stop(3).replace("step: 3", "step: 3, rank: 1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [start_rank(rank, port, *arguments, "hardware=cpu_x2", alone) for rank in (0, 1)]
    try:
        said = [process.communicate(timeout=120)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [143, 143], said
    assert all("after step 3 of 6" in text for text in said)
    assert checkpoints("reconstructor") == ["000003"]
    state = torch.load("runs/parts/stages/reconstructor/checkpoints/000003/state", weights_only=True)
    assert len(state["rng"]) == 2 and state["NLADataModule"]["consumed_documents"] == 12
    process = Program("train.py", *arguments)
    _, text = process.communicate(timeout=120)
    assert process.returncode == 0 and checkpoints("reconstructor") == ["000003", "000006"], text
