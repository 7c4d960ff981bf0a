"""How far a stage is: steps, time left, and what it logs with `prog_bar=True`.

On a terminal a bar; elsewhere (a log file, CI) one plain line every few steps, because bars garble logs.
"""

import time
from typing import Any

import rich
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar


class Progress(ProgressBar):
    """Takes the place of Lightning's own progress bar.

    Args:
        every: steps between two updates; reading a metric waits for the device.
        line_every: steps between two lines where the output is no terminal.
    """

    def __init__(self, every: int, line_every: int) -> None:
        super().__init__()
        self.every, self.line_every = max(1, every), max(1, line_every)
        self.enabled = True
        self._console: Console = rich.get_console()  # shared with other printing, so that the bar makes room for it
        self._bar: Bar | None = None
        self._started, self._first_step, self._shown = 0.0, 0, -1

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if not trainer.is_global_zero:
            self.disable()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started, self._first_step, self._shown = time.monotonic(), trainer.global_step, -1
        if self.enabled and self._console.is_terminal:
            texts = [TextColumn(f"{{task.{name}}}") for name in ("description", "fields[left]", "fields[metrics]")]
            self._bar = Bar(texts[0], BarColumn(24), MofNCompleteColumn(), *texts[1:], console=self._console)
            self._bar.start()
            total = total_steps(trainer)
            self._bar.add_task(stage_name(pl_module), total=total, completed=trainer.global_step, left="", metrics="")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step = trainer.global_step
        every = self.every if self._bar is not None else self.line_every
        if self.enabled and step != self._shown and (step % every == 0 or step == total_steps(trainer)):
            self._show(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.enabled and not trainer.sanity_checking and self._started:
            self._show(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()
        if self.enabled:
            took = clock(time.monotonic() - self._started)
            self._console.print(f"{stage_name(pl_module)}: {trainer.global_step} steps, took {took}", highlight=False)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step, total, name = trainer.global_step, total_steps(trainer), stage_name(pl_module)
        self._shown = step
        done = step - self._first_step
        seconds = (time.monotonic() - self._started) * (total - step) / done if total is not None and done else None
        left = "" if seconds is None else f"{clock(seconds)} left"
        metrics = "  ".join(f"{key} {value}" for key, value in shown_metrics(trainer, name).items())
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, left=left, metrics=metrics)
        else:
            place = f"{step}" if total is None else f"{step}/{total}"
            self._console.print(f"{name} {place}  {left}  {metrics}", markup=False, highlight=False, soft_wrap=True)


def stage_name(pl_module: LightningModule) -> str:
    """The stage's own name; log names begin with it."""
    return str(getattr(pl_module, "name", type(pl_module).__name__))


def total_steps(trainer: Trainer) -> int | None:
    """Optimizer steps in all; None where only the data's end stops the run."""
    return trainer.max_steps if trainer.max_steps and trainer.max_steps > 0 else None


def shown_metrics(trainer: Trainer, stage: str) -> dict[str, str]:
    """What was logged for the bar, without the stage's name in front; validation's are marked `held-out`."""
    shown = {}
    for key, value in trainer.progress_bar_metrics.items():
        name = key.removeprefix(f"{stage}/").replace("validation/", "held-out ")
        if name != "v_num":  # the logger's version: no metric
            shown[name] = f"{value:.3g}" if isinstance(value, (int, float)) else str(value)
    return shown


def clock(seconds: float) -> str:
    """`4:05`, or `1:02:03` from an hour on."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
