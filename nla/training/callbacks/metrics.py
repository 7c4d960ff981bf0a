"""metrics.csv: a line per logged step and per validation, written as soon as it is known.

Lightning's CSVLogger keeps lines in memory and deletes the file when a run resumes. Here a checkpoint stores how many
lines were written before it, and a resumed run continues after exactly those.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from nla import files
from nla.errors import TrainingError

HELD_OUT = "/validation/"


class MetricsFile(Callback):
    """Writes what the stage logs: `step` is the number of finished optimizer steps.

    How often steps are logged is `trainer.log_every_n_steps`.

    Args:
        path: of the file, in the folder of the stage (the Trainer's ``default_root_dir``).
    """

    def __init__(self, path: str) -> None:
        self.name, self.path = path, Path(path)
        self._columns: list[str] = []
        self._lines = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.path = Path(trainer.default_root_dir) / self.name

    def state_dict(self) -> dict[str, Any]:
        return {"lines": self._lines}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._lines = int(state_dict["lines"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the lines after the checkpoint: their steps will be repeated."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return
        text = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        rows = list(csv.reader(io.StringIO(text)))
        self._columns = rows[0] if rows else ["step"]
        self._write([dict(zip(self._columns, row)) for row in rows[1 : self._lines + 1]])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        every = getattr(trainer, "log_every_n_steps", 1)
        if (batch_idx + 1) % max(1, every) == 0:
            self._append(trainer, held_out=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._append(trainer, held_out=True)

    def _append(self, trainer: Trainer, *, held_out: bool) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row: dict[str, Any] = {name: value for name, value in values.items() if (HELD_OUT in name) == held_out}
        if not row:
            return
        row = {"step": trainer.global_step, **row}
        new = [name for name in row if name not in self._columns]
        try:
            if new:
                rows = list(csv.DictReader(io.StringIO(self.path.read_text(encoding="utf-8"))))
                self._columns += new
                self._write([*rows, row])
            else:
                files.append_text(self.path, csv_text(self._columns, [row], header=False))
        except OSError as error:
            raise TrainingError(
                f"{self.path}: the metrics of step {trainer.global_step} cannot be written ({error.strerror}): make "
                "room or give permission, then the same command continues from the last checkpoint"
            ) from error
        self._lines += 1

    def _write(self, rows: list[dict[str, Any]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(self.path, csv_text(self._columns, rows, header=True))


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, header: bool) -> str:
    """Rows as lines of a CSV file; a column that a row lacks stays empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
