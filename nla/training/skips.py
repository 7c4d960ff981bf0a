"""Steps left out because a loss or a gradient was not finite: how many, and which rows they had."""

import json
from pathlib import Path
from typing import Any

from nla.core.records import ActivationBatch
from nla.errors import TrainingError

RECORD = "skipped-rank{rank}.jsonl"  # in the stage's folder: a file per rank, whose rows are different ones


class Skips:
    """Counts them, writes their rows down, and stops the run after `allowed` in a row. Its state resumes.

    `what` tells apart the updates that a step may have, each with a row of its own.
    """

    def __init__(self, stage: str, allowed: int) -> None:
        self.stage, self.allowed = stage, allowed
        self.total = 0
        self.in_a_row: dict[str, int] = {}

    def passed(self, what: str = "steps") -> None:
        """A step was taken."""
        self.in_a_row[what] = 0

    def skipped(
        self,
        batch: ActivationBatch,
        figures: dict[str, float],
        *,
        step: int,
        rank: int,
        folder: Path,
        what: str = "steps",
    ) -> None:
        """A step was left out; `figures` are the loss of this rank and the gradient norms. Raises TrainingError."""
        self.total += 1
        self.in_a_row[what] = in_a_row = self.in_a_row.get(what, 0) + 1
        record = {
            "step": step,
            "what": what,
            "figures": {name: str(value) for name, value in figures.items()},  # JSON has no nan
            "rows": [list(row) for row in zip(batch.document, batch.position.tolist(), strict=True)],
        }
        path = folder / RECORD.format(rank=rank)
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if in_a_row >= self.allowed:
            raise TrainingError(
                f"stage {self.stage}: {in_a_row} {what} in a row had a loss or gradient that is not finite (last "
                f"at step {step}); their documents and positions are in {path}: look at these, or lower "
                f"stage.{self.stage}.optimizer.lr; the weights are finite, and the same command goes on from the last "
                "checkpoint"
            )

    def state(self) -> dict[str, Any]:
        return {"total": self.total, "in_a_row": dict(self.in_a_row)}

    def restore(self, state: dict[str, Any]) -> None:
        self.total, self.in_a_row = state.get("total", 0), dict(state.get("in_a_row", {}))
