"""Faults A, checkpoint and resume: what is stopped at any moment ends as if it had not been."""

from pathlib import Path

import pytest
from lives import overrides, stop, trace, train

from nla.errors import Interrupted

STAGES = ("verbalizer", "reconstructor", "joint")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("stage", STAGES)
def test_8_steps_and_12_are_20(stage: str, tiny_folder: str) -> None:
    """Case 1: losses, weights, optimizer, schedule, random states and rows, bitwise, with dropout on."""
    train(*overrides(tiny_folder, "straight", stage))
    with pytest.raises(Interrupted):
        train(*overrides(tiny_folder, "parts", stage), stop(8))
    assert [line["step"] for line in trace("parts")] == list(range(1, 9))
    train(*overrides(tiny_folder, "parts", stage))
    assert trace("parts") == trace("straight")
