"""All checks on the run's own config, data, modules and hardware, one step of each stage, and one table."""

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import rich
from hydra.utils import instantiate
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities import rank_zero_only
from rich.table import Table
from rich.text import Text

from nla.config.schema import TrainSettings
from nla.config.trainer import with_strategy
from nla.core.records import ActivationBatch
from nla.data.build import build_data
from nla.data.datamodule import NLADataModule
from nla.errors import TrainingError
from nla.planning.gather import with_gather
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


def preflight(settings: TrainSettings) -> list[Check]:
    """All checks of a training run; its folder is not touched. Raises NLAError."""
    settings = with_gather(settings)
    for logger in CHATTY:
        logging.getLogger(logger).setLevel(logging.WARNING)
    return list(_checks(settings))


def require(settings: TrainSettings) -> None:
    """Print the table. Raises TrainingError if a check failed."""
    results = preflight(settings)
    show(results)
    failed = [check for check in results if check.status == "failed"]
    if failed:
        raise TrainingError(f"preflight: {failed[0].name} failed ({len(failed)} in all): {failed[0].message}")


def show(results: list[Check]) -> None:
    """Print the table on rank 0."""
    if rank_zero_only.rank == 0:
        rich.get_console().print(table(results))


def table(results: list[Check]) -> Table:
    """One row per check."""
    shown = Table("check", "", "found", title="preflight", title_justify="left")
    for check in results:
        shown.add_row(check.name, Text(check.status, style=STYLE[check.status]), Text(check.message))
    return shown


def _checks(settings: TrainSettings) -> Iterator[Check]:
    for number, name in enumerate(settings.stages):
        seed_everything(settings.seed, workers=True, verbose=False)
        start = settings.nla
        stage = build_stage(settings, name, start)
        data = build_data(settings.data, settings.stage[name].data, stage.target, settings.seed)
        data.setup("fit")
        if number == 0:
            yield Check("parts", "ok", f"{stage.nla.base_model}, layer {stage.nla.layer}, width {stage.nla.d_model}")
            kept = int((settings.callbacks.get("checkpoint") or {}).get("keep", 1))
            needed = checks.disk_needed(stage.nla, len(settings.stages), kept)
            yield from checks.run_folder(Path(settings.run_dir), needed)
        hardware = with_strategy(settings.hardware.trainer, settings.adapter.kind)
        look = partial(_pair, data=data, settings=settings, trained=start is not None) if number == 0 else None
        yield from trial(stage, data, hardware, EXPECTED_WARNINGS, look)


def _pair(stage: Stage, data: NLADataModule, settings: TrainSettings, trained: bool) -> list[Check]:
    """What the pair does with activations of the first training documents."""
    verbalizer, batch = stage.nla.verbalizer, _rows(stage, data)
    results = [checks.injection(verbalizer, batch), checks.injection_scale(verbalizer, batch)]
    if trained:
        results.append(checks.reconstruction(stage.nla, batch))
    few = next(batch.split(SAMPLES))
    node = {**settings.sampling, "group_size": 1, "graphs": None}
    params = instantiate(node, _convert_="all")
    with gathered(verbalizer, stage.gather):
        completions = verbalizer.sample(few.activation, params)
    results.append(checks.explanations(completions, trained or isinstance(stage, JointStage)))
    limit = (settings.callbacks.get("alarms") or {}).get("sampling_gap")
    results.append(checks.sampling_gap(verbalizer, few, completions, float("inf") if limit is None else limit))
    return results


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
