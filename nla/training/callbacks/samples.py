"""A table of explanations at each validation, for TensorBoard and for the person watching.

It reads what a stage's `validation_step` returns: `text` (contexts), `explanation` (None: malformed), `cosine`. Each
validation shows the same rows, so that they can be followed through training.
"""

import re
from typing import Any

import rich
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.table import Table
from rich.text import Text

from nla.training.callbacks.loggers import FaultTolerantLogger

MALFORMED = "(malformed)"
Row = tuple[str, str | None, float]  # context, explanation, cosine


class Samples(Callback):
    """Shows `count` rows of each validation.

    Args:
        count: rows, evenly spaced over the first validation batch.
        context_characters: of a context's end.
        print_table: also print it; TensorBoard gets it in any case.
    """

    def __init__(self, count: int, context_characters: int, print_table: bool) -> None:
        self.count, self.context_characters, self.print_table = max(1, count), context_characters, print_table
        self._rows: list[Row] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if batch_idx or trainer.sanity_checking or not isinstance(outputs, dict) or "explanation" not in outputs:
            return
        count = min(self.count, len(outputs["text"]))
        for row in (k * len(outputs["text"]) // count for k in range(count)):
            context = " ".join(outputs["text"][row].split())
            if len(context) > self.context_characters:
                context = f"…{context[-self.context_characters :]}"
            self._rows.append((context, outputs["explanation"][row], float(outputs["cosine"][row])))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._rows or not trainer.is_global_zero:
            return
        name = str(getattr(pl_module, "name", type(pl_module).__name__))
        for logger in trainer.loggers:
            if isinstance(logger, FaultTolerantLogger):
                logger.log_table(f"{name}/samples", markdown_table(self._rows), trainer.global_step)
        if self.print_table:
            rich.get_console().print(terminal_table(self._rows, f"{name}, step {trainer.global_step}"))
        self._rows = []


def markdown_table(rows: list[Row]) -> str:
    """For TensorBoard, which renders Markdown and HTML; texts are shown literally."""
    lines = ["| context | explanation | cosine |", "|---|---|---:|"]
    for context, explanation, cosine in rows:
        lines.append(f"| {escape(context)} | {escape(explanation or MALFORMED)} | {cosine:.3f} |")
    return "\n".join(lines)


def terminal_table(rows: list[Row], title: str) -> Table:
    """For a terminal; brackets in the texts are not markup."""
    table = Table(title=Text(title), title_justify="left", show_lines=True)
    table.add_column("context", ratio=1)
    table.add_column("explanation", ratio=1)
    table.add_column("cosine", justify="right")
    for context, explanation, cosine in rows:
        shown = Text(explanation) if explanation is not None else Text(MALFORMED, style="red")
        table.add_row(Text(context), shown, f"{cosine:.2f}")
    return table


def escape(text: str) -> str:
    """Every character other than letters, digits and spaces as a character reference: inert in Markdown and in HTML."""
    return re.sub(r"[^\w\s]|_", lambda sign: f"&#{ord(sign[0])};", " ".join(text.split()))
