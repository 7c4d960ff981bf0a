"""Fault 50: a logger that is down or may not write does not end the run."""

import csv
import warnings
from pathlib import Path

import pytest
from support.runs import overrides, train

pytestmark = pytest.mark.usefixtures("here")


def rows(name: str) -> list[dict[str, str]]:
    with Path("runs", name, "stages/reconstructor/metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "logger",
    ["{_target_: support.loggers.Down, until: 2}",
     "{_target_: lightning.pytorch.loggers.TensorBoardLogger, save_dir: /sys/nla, name: '', version: ''}"],
)  # fmt: skip
def test_a_logger_that_fails_is_left_out_with_one_warning(logger: str, tiny_folder: str) -> None:
    """Case 50: a service that goes down, and a folder that cannot be written; metrics.csv keeps every step."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        train(*overrides(tiny_folder, "parts", "reconstructor", 6, **{"+logger__down": logger}))
    about = [str(warning.message) for warning in said if "left out" in str(warning.message)]
    assert len(about) == 1 and "metrics.csv has the metrics" in about[0]
    assert "no route to host" in about[0] or "/sys/nla" in about[0] or "TensorBoardLogger" in about[0]
    found = rows("parts")
    assert [row["step"] for row in found] == ["1", "2", "3", "4", "5", "6"]
    assert all(float(row["reconstructor/error"]) > 0 for row in found)
    assert Path("runs/parts/nla/verbalizer").is_dir()
