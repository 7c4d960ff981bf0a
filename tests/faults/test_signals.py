"""Fault 4 with processes of their own: exit statuses, a second signal."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lives import overrides, stop

pytestmark = pytest.mark.usefixtures("here")
ROOT = Path(__file__).parents[2]


def start(*arguments: str) -> subprocess.Popen[str]:
    """train.py as a person starts it."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def checkpoints(stage: str) -> list[str]:
    return sorted(path.name for path in Path("runs/parts/stages", stage, "checkpoints").iterdir())


@pytest.mark.slow
def test_statuses_and_a_second_signal(tiny_folder: str) -> None:
    """Case 4: SIGTERM ends with 143, Ctrl-C with 130; a second one at once, with the checkpoint before intact."""
    arguments = overrides(tiny_folder, "parts", "reconstructor", 6, **{"callbacks__checkpoint__every": 2})
    for step, number, status in ((3, signal.SIGTERM, 143), (4, signal.SIGINT, 130)):
        process = start(*arguments, stop(step, "step", number))
        _, said = process.communicate(timeout=120)
        assert process.returncode == status, said
        assert f"stopped: stage reconstructor stopped by {number.name} after step {step} of 6" in said
        assert "Traceback" not in said and f"{step:06d}" in checkpoints("reconstructor")
    process = start(*arguments, stop(5, "twice"))
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGTERM  # which a shell shows as 143
    assert Path("noted").exists() and checkpoints("reconstructor") == ["000003", "000004"]
    process = start(*arguments)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    steps = [json.loads(line)["step"] for line in Path("parts.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]
