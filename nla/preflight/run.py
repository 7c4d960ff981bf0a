"""Joins the checks: the run's own config, data, parts and hardware, one step of each stage, one table."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rich
from lightning.pytorch import seed_everything
from omegaconf import DictConfig
from rich.table import Table
from rich.text import Text

from nla import app
from nla.config import check_train, model_depth, plain_config
from nla.errors import TrainingError
from nla.preflight import checks
from nla.preflight.checks import Check
from nla.preflight.trial import trial
from nla.settings import TrainSettings
from nla.stages import JointStage
from nla.types import ActivationBatch

ROWS = 64  # activations that the pair is looked at with
SAMPLES = 8
STYLE = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def preflight(cfg: DictConfig) -> list[Check]:
    """All checks of a training config; the run folder is left alone. Raises NLAError for a mistake in the config."""
    cfg = cfg.copy()
    settings = check_train(cfg)
    if settings.nla is None:
        cfg.layer.index = settings.layer.block(model_depth(settings.model))
    for logger in app.CHATTY:
        logging.getLogger(logger).setLevel(logging.WARNING)
    return list(_checks(settings, plain_config(cfg)))


def require(cfg: DictConfig) -> None:
    """Print the table. Raises TrainingError where a check failed."""
    found = preflight(cfg)
    rich.get_console().print(table(found))
    failed = [check for check in found if check.status == "failed"]
    if failed:
        raise TrainingError(f"preflight: {failed[0].name} failed ({len(failed)} in all): {failed[0].said}")


def table(found: list[Check]) -> Table:
    """One row per check."""
    shown = Table("check", "", "found", title="preflight", title_justify="left")
    for check in found:
        shown.add_row(check.name, Text(check.status, style=STYLE[check.status]), Text(check.said))
    return shown


def _checks(settings: TrainSettings, plain: dict[str, Any]) -> Iterator[Check]:
    for number, name in enumerate(settings.stages):
        seed_everything(settings.seed, workers=True, verbose=False)
        start = settings.nla
        stage = app.build_stage(settings, plain, name, start)
        data = app.build_data(plain["data"], stage.target, seed=settings.seed, **plain["stage"][name]["data"])
        data.setup("fit")
        if number == 0:
            yield Check("parts", "ok", f"{stage.nla.base_model}, layer {stage.nla.layer}, width {stage.nla.d_model}")
            kept = int((plain["callbacks"].get("checkpoint") or {}).get("keep", 1))
            needed = checks.disk_needed(stage.nla, len(settings.stages), kept)
            yield from checks.run_folder(Path(settings.run_dir), needed)
            yield from _pair(stage, data, plain, trained=start is not None)
        yield from trial(stage, data, plain["hardware"]["trainer"], app.EXPECTED_WARNINGS)


def _pair(stage: Any, data: Any, plain: dict[str, Any], trained: bool) -> Iterator[Check]:
    """What the pair does with activations of the first training documents."""
    device = app.evaluation_device(plain["hardware"]["trainer"]["accelerator"])
    stage.nla.to(device)
    stage.target.to(device)
    batch = _rows(stage, data, device)
    yield checks.injection(stage.nla.verbalizer, batch)
    yield checks.injection_scale(stage.nla.verbalizer, batch)
    if trained:
        yield checks.reconstruction(stage.nla, batch)
    few = next(batch.split(SAMPLES))
    how = {key: value for key, value in plain["rollout"].items() if key not in ("_target_", "group_size", "compiled")}
    completions = stage.nla.verbalizer.sample(few.activation, **how)
    yield checks.explanations(completions, trained or isinstance(stage, JointStage))
    alarms = plain["callbacks"].get("alarms") or {}
    limit = alarms.get("sampling_gap")
    yield checks.sampling_gap(stage.nla.verbalizer, few, completions, float("inf") if limit is None else limit)


def _rows(stage: Any, data: Any, device: Any) -> ActivationBatch:
    """About `ROWS` positions of the training split, one of each document where there are as many."""
    each = data.plan.positions_per_document
    batch_size, data.batch_size = data.batch_size, ROWS * each
    try:
        tokens = data.batch(data.split, 0, 0).to(device)
    finally:
        data.batch_size = batch_size
    read: ActivationBatch = stage.on_after_batch_transfer(tokens, 0)
    return ActivationBatch(
        read.activation[::each], read.document[::each], read.position[::each], read.text[::each],
        None if read.explanation is None else read.explanation[::each],
    )  # fmt: skip
