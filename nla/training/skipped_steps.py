"""Skipped steps: those whose loss or gradient is not finite. How many there were, and which rows they had."""

import json
from pathlib import Path
from typing import Any

from nla import files
from nla.core.records import ActivationBatch
from nla.errors import TrainingError

RECORD = "skipped-rank{rank}.jsonl"  # in the stage's folder; one file per rank, because ranks have different rows


class SkippedSteps:
    """Counts skipped steps, records their rows, and stops the run after `allowed` in a row.

    A step may have several updates; each kind (`steps`, `reconstructor updates`) has a count of its own.
    """

    def __init__(self, stage: str, allowed: int) -> None:
        self.stage, self.allowed = stage, allowed
        self.total = 0
        self.in_a_row: dict[str, int] = {}

    def took(self, kind: str = "steps") -> None:
        """An update was made."""
        self.in_a_row[kind] = 0

    def skip(
        self, batch: ActivationBatch, figures: dict[str, float], *, step: int, rank: int, folder: Path, kind: str
    ) -> None:
        """An update was skipped; `figures` are this rank's loss and the gradient norms. Raises TrainingError."""
        self.total += 1
        self.in_a_row[kind] = in_a_row = self.in_a_row.get(kind, 0) + 1
        record = {
            "step": step,
            "what": kind,
            "figures": {name: str(value) for name, value in figures.items()},  # JSON has no nan
            "rows": [list(row) for row in zip(batch.document, batch.position.tolist(), strict=True)],
        }
        path = folder / RECORD.format(rank=rank)
        files.append_text(path, json.dumps(record) + "\n")
        if in_a_row >= self.allowed:
            raise TrainingError(
                f"stage {self.stage}: {in_a_row} {kind} in a row had a loss or gradient that is not finite (the last "
                f"at step {step}); their documents and positions are in {path}: look at these, or lower "
                f"stage.{self.stage}.optimizer.lr; the weights are finite, and the same command continues from the "
                "last checkpoint"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "in_a_row": dict(self.in_a_row)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total, self.in_a_row = state.get("total", 0), dict(state.get("in_a_row", {}))
