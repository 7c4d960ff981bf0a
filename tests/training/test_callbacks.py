"""The callbacks on a real trainer: lines with the time left, the bar, samples that show texts literally."""

import io
import math
from pathlib import Path
from typing import Any

import pytest
import rich
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from nla.training.callbacks import FaultTolerantLogger, Progress, Samples
from nla.training.callbacks.distributions import fve_by_position
from nla.training.callbacks.progress import clock
from nla.training.callbacks.samples import escape, markdown_table

NASTY = "a [red]b[/red] | <script>x</script> *c* _d_ `e` [l](u)\nnext"


class Stub(LightningModule):
    """A stage as the callbacks see it: a name, metrics for the bar, rows from validation."""

    name = "joint"

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("joint/reward", -0.5, prog_bar=True)
        self.log("joint/hidden", 1.0)
        return self.weight.sum()

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        self.log("joint/validation/fve", 0.25, prog_bar=True)
        texts = [f"context {batch_idx} {row}" for row in range(6)]
        return {"text": texts, "explanation": [NASTY, *["said"] * 4, None], "cosine": torch.linspace(0, 1, 6)}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> Console:
    """What is printed, wide and to no terminal."""
    console = Console(file=io.StringIO(), width=160)
    monkeypatch.setattr(rich, "get_console", lambda: console)
    return console


def train(callbacks: list[Callback], folder: Path, steps: int = 6, **options: Any) -> Trainer:
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=3,
        check_val_every_n_epoch=None,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=callbacks,
        **{"logger": False, **options},
    )
    loader = DataLoader(torch.zeros(100, 1))  # type: ignore[arg-type]
    trainer.fit(Stub(), loader, DataLoader(torch.zeros(2, 1)))  # type: ignore[arg-type]
    return trainer


def printed(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_plain_lines_off_a_terminal(console: Console, tmp_path: Path) -> None:
    train([Progress(every=1, line_every=2)], tmp_path)
    lines = printed(console).splitlines()
    steps = [line.split()[1] for line in lines if line.startswith("joint ")]
    assert steps[-1] == "6/6"
    assert {"2/6", "4/6"} <= set(steps)
    assert all("left" in line and "reward -0.5" in line for line in lines if line.startswith("joint "))
    assert "held-out fve 0.25" in lines[-2]
    assert "hidden" not in printed(console)
    assert lines[-1].startswith("joint: 6 steps, took 0:0")


def test_a_bar_on_a_terminal_and_room_for_samples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=160, force_terminal=True)
    monkeypatch.setattr(rich, "get_console", lambda: console)
    train([Progress(every=1, line_every=20), Samples(count=2, context_characters=80, print_table=True)], tmp_path)
    shown = printed(console)
    for text in ("6/6", "reward -0.5", "held-out fve 0.25", "context 0 0", "said"):
        assert text in shown
    assert "\x1b[?25h" in shown.rpartition("6/6")[2]  # the cursor is given back


def test_the_bar_ends_with_an_exception(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Failing(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 2:
                raise RuntimeError("stop")

    console = Console(file=io.StringIO(), width=160, force_terminal=True)
    monkeypatch.setattr(rich, "get_console", lambda: console)
    progress = Progress(every=1, line_every=20)
    with pytest.raises(RuntimeError, match="stop"):
        train([progress, Failing()], tmp_path)
    assert progress._bar is None


def test_lightning_leaves_its_own_bar_out(console: Console, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = train([Progress(every=1, line_every=20)], tmp_path)
    assert trainer.progress_bar_callback is trainer.callbacks[0]  # type: ignore[attr-defined]
    assert "Epoch 0" not in capsys.readouterr().err


def test_samples_reach_tensorboard_and_the_person(console: Console, tmp_path: Path) -> None:
    logger = FaultTolerantLogger(TensorBoardLogger(tmp_path, name="", version=""))
    train(
        [Progress(every=1, line_every=100), Samples(count=3, context_characters=80, print_table=True)],
        tmp_path,
        logger=logger,
    )
    shown = printed(console)
    assert shown.count("joint, step 3") == 1  # not during the sanity check
    assert shown.count("joint, step 6") == 1
    assert "[red]b[/red] | <script>x</script>" in shown
    assert "context 0 0" in shown
    assert "context 1" not in shown  # the first validation batch only
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    found = events.Tensors("joint/samples/text_summary")
    assert [event.step for event in found] == [3, 6]
    table = found[0].tensor_proto.string_val[0].decode()
    assert len(table.splitlines()) == 2 + 3
    assert "<script>" not in table


def test_fve_by_position_by_hand() -> None:
    activation = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, -1.0]])
    found = fve_by_position(activation, torch.tensor([1.0, 0.5, 0.0, 1.0]), torch.tensor([0, 7, 8, 200]))
    truth = math.sqrt(2) * activation
    spread = (truth - truth.mean(0)).square().mean(1)
    assert found == {
        "fve_from_0": pytest.approx(1 - 1.0 / float(spread[:2].sum())),
        "fve_from_8": pytest.approx(1 - 2.0 / float(spread[2])),
        "fve_from_128": pytest.approx(1.0),
    }


def test_texts_are_inert_in_markdown() -> None:
    cell = escape(NASTY)
    assert not set("[]|<>*_`()\n") & set(cell)
    row = markdown_table([("c", None, 0.5)]).splitlines()[-1]
    assert row == "| c | &#40;malformed&#41; | 0.500 |"


def test_long_contexts_show_their_end() -> None:
    callback = Samples(count=1, context_characters=5, print_table=False)
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    outputs = {"text": ["abcdefghij"], "explanation": ["x"], "cosine": torch.ones(1)}
    callback.on_validation_batch_end(trainer, Stub(), outputs, None, 0)
    assert callback._rows == [("…fghij", "x", 1.0)]


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (65.4, "1:05"), (3723, "1:02:03"), (-3, "0:00")])
def test_clock(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown
