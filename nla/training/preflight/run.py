"""All checks on the run's own config, data, modules and hardware, and one step of each stage."""

import logging
import time
from functools import partial
from pathlib import Path

import rich
from hydra.utils import instantiate
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities import rank_zero_only
from rich.text import Text

from nla.config.schema import TrainSettings
from nla.config.trainer import with_strategy
from nla.core.records import ActivationBatch
from nla.data.build import build_data
from nla.data.datamodule import NLADataModule
from nla.errors import TrainingError
from nla.planning.gather import with_gather
from nla.signals import terminated_at_once
from nla.training.build import CHATTY, EXPECTED_WARNINGS, build_stage
from nla.training.parallel import gathered
from nla.training.preflight import checks
from nla.training.preflight.checks import Check
from nla.training.preflight.trial import trial
from nla.training.stages import JointStage
from nla.training.stages.base import Stage

ROWS = 64  # activations that the pair is checked with
SAMPLES = 8
STYLE = {"ok": "green", "warning": "yellow", "failed": "bold red"}


class Report:
    """Collects the checks, and prints each on rank 0 as it ends, with the seconds that it took."""

    def __init__(self) -> None:
        self.checks: list[Check] = []
        self._since = self._started = time.perf_counter()

    def __call__(self, check: Check) -> None:
        now = time.perf_counter()
        self.checks.append(check)
        self._print(
            Text(f"{check.status:8}", style=STYLE[check.status]).append(
                f"{check.name} ({now - self._since:.1f} s): {check.message}", style="not bold default"
            )
        )
        self._since = now

    def close(self) -> None:
        counts = ", ".join(f"{sum(c.status == status for c in self.checks)} {status}" for status in STYLE)
        self._print(Text(f"preflight: {counts}; {time.perf_counter() - self._started:.0f} s"))

    def _print(self, line: Text) -> None:
        if rank_zero_only.rank == 0:
            rich.get_console().print(line, soft_wrap=True)


def preflight(settings: TrainSettings) -> list[Check]:
    """All checks of a training run, printed as they end; its folder is not touched. Raises NLAError."""
    settings = with_gather(settings)
    for logger in CHATTY:
        logging.getLogger(logger).setLevel(logging.WARNING)
    report = Report()
    with terminated_at_once():
        _run(settings, report)
    report.close()
    return report.checks


def require(settings: TrainSettings) -> None:
    """Raises TrainingError if a check failed."""
    failed = [check for check in preflight(settings) if check.status == "failed"]
    if failed:
        raise TrainingError(f"preflight: {failed[0].name} failed ({len(failed)} in all): {failed[0].message}")


def _run(settings: TrainSettings, report: Report) -> None:
    for number, name in enumerate(settings.stages):
        seed_everything(settings.seed, workers=True, verbose=False)
        start = settings.nla
        stage = build_stage(settings, name, start)
        data = build_data(settings.data, settings.stage[name].data, stage.target, settings.seed)
        data.setup("fit")
        if number == 0:
            report(Check("parts", "ok", f"{stage.nla.base_model}, layer {stage.nla.layer}, width {stage.nla.d_model}"))
            kept = int((settings.callbacks.get("checkpoint") or {}).get("keep", 1))
            for check in checks.run_folder(
                Path(settings.run_dir), checks.disk_needed(stage.nla, len(settings.stages), kept)
            ):
                report(check)
        hardware = with_strategy(settings.hardware.trainer, settings.adapter.kind)
        look = partial(_pair, data=data, settings=settings, trained=start is not None, report=report)
        trial(stage, data, hardware, EXPECTED_WARNINGS, report, look if number == 0 else None)


def _pair(stage: Stage, data: NLADataModule, settings: TrainSettings, trained: bool, report: Report) -> None:
    """What the pair does with activations of the first training documents."""
    verbalizer, batch = stage.nla.verbalizer, _rows(stage, data)
    report(checks.injection(verbalizer, batch))
    report(checks.injection_scale(verbalizer, batch))
    if trained:
        report(checks.reconstruction(stage.nla, batch))
    few = next(batch.split(SAMPLES))
    node = {**settings.sampling, "group_size": 1, "graphs": None}
    params = instantiate(node, _convert_="all")
    with gathered(verbalizer, stage.gather):
        completions = verbalizer.sample(few.activation, params)
    report(checks.explanations(completions, trained or isinstance(stage, JointStage)))
    limit = (settings.callbacks.get("alarms") or {}).get("sampling_gap")
    report(checks.sampling_gap(verbalizer, few, completions, float("inf") if limit is None else limit))


def _rows(stage: Stage, data: NLADataModule) -> ActivationBatch:
    """One position of each of the first `ROWS` documents of the training split; ranks have different documents."""
    each = data.unit
    batch_size, data.batch_size = data.batch_size, ROWS * each * stage.trainer.world_size
    try:
        tokens = data.batch(data.split, 0, 0).to(stage.device)
    finally:
        data.batch_size = batch_size
    read: ActivationBatch = stage.on_after_batch_transfer(tokens, 0)
    return ActivationBatch(
        read.activation[::each], read.document[::each], read.position[::each], read.text[::each],
        None if read.explanation is None else read.explanation[::each],
    )  # fmt: skip
