"""The program behind train.py: check the config, build the parts, run them, leave the run folder.

    runs/<name>/config.yaml            resolved, without secrets
    runs/<name>/stages/<stage>/        checkpoints and metrics; nla/ in it once the stage is done
    runs/<name>/nla/                   the final pair

A stage whose pair exists is not run again, so the same command continues where it stopped.
"""

import logging
import warnings
from contextlib import nullcontext
from pathlib import Path

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only

from nla.config.check import model_depth
from nla.config.run_folder import (
    copy_pair,
    finished,
    is_pair,
    pinned_revision,
    record_config,
)
from nla.config.schema import TrainSettings
from nla.config.trainer import check_ranks, with_strategy
from nla.data.build import build_data
from nla.data.datamodule import NLADataModule
from nla.errors import CheckpointError, TrainingError
from nla.files import locked
from nla.planning.gather import with_gather
from nla.training.build import CHATTY, EXPECTED_WARNINGS, build_all, build_stage, run_identity, starting_pair
from nla.training.callbacks import Checkpointing, FaultTolerantLogger, RankFailure, StateFile
from nla.training.callbacks.metrics import HELD_OUT
from nla.training.parallel import whole_pair
from nla.training.preflight import require
from nla.training.stages.base import Stage


def train(settings: TrainSettings) -> Path:
    """Run the config's stages in order and return the folder of the final pair. Raises NLAError."""
    run = Path(settings.run_dir)
    check_ranks(settings.hardware.trainer)
    settings = with_gather(with_pinned_model(settings, run))
    if settings.preflight:
        require(settings)
    first = rank_zero_only.rank == 0  # set by the launcher; no trainer exists yet
    with locked(run) if first else nullcontext():
        if first:
            record_config(settings.model_dump(), run)
        pair = settings.nla
        for name in settings.stages:
            exported = run / "stages" / name / "nla"
            if not finished(exported, settings.stage[name].steps):
                run_stage(settings, name, pair)
            pair = str(exported)
        return copy_pair(Path(str(pair)), run / "nla") if first else run / "nla"


def with_pinned_model(settings: TrainSettings, run: Path) -> TrainSettings:
    """The model's commit and the block to read, fixed so that a later run uses the same."""
    if settings.nla is not None:
        return settings
    layer, revision = settings.layer.block(model_depth(settings.model)), pinned_revision(settings.model, run)
    return settings.changed(model__revision=revision, layer__index=layer)


def run_stage(settings: TrainSettings, name: str, start: str | None) -> None:
    """Train one stage from the pair that the stage before it left (`start`), or from the target, and export it."""
    folder, options = Path(settings.run_dir) / "stages" / name, settings.stage[name]
    seed_everything(settings.seed, workers=True, verbose=False)
    stage = build_stage(settings, name, start)
    for logger in CHATTY:
        logging.getLogger(logger).setLevel(logging.WARNING)
    rank_failure = RankFailure()
    trainer = Trainer(
        default_root_dir=folder,
        max_steps=options.steps,
        max_epochs=-1,
        check_val_every_n_epoch=None,  # validation goes by steps: an epoch of the data has no meaning for the trainer
        enable_model_summary=False,
        use_distributed_sampler=False,  # the data module shards by itself
        callbacks=[*build_all(settings.callbacks), rank_failure],
        logger=[FaultTolerantLogger(logger) for logger in build_all(settings.logger, folder)],
        plugins=[StateFile()],
        **with_strategy(settings.hardware.trainer, settings.adapter.kind),
        **options.trainer,
    )
    data = build_data(settings.data, options.data, stage.target, settings.seed)
    with rank_failure.shared():
        fit(trainer, stage, data, start)
        record_result(trainer, settings, name)
        pair = whole_pair(stage.nla, lambda: starting_pair(settings, start, stage.target))
        if trainer.is_global_zero:
            pair.save_pretrained(folder / "nla", stage=name, training={"steps": options.steps})
        trainer.strategy.barrier()


def record_result(trainer: Trainer, settings: TrainSettings, name: str) -> None:
    """The stage's settings and last validation figures, so that TensorBoard compares runs."""
    options = settings.stage[name]
    params = {
        "model": settings.model.id,
        "adapter": settings.adapter.kind,
        "seed": settings.seed,
        "steps": options.steps,
    }
    params |= {"batch_size": options.data.batch_size, "layer": settings.layer.block(model_depth(settings.model))}
    results = {key: float(value) for key, value in trainer.callback_metrics.items() if HELD_OUT in key}
    for logger in trainer.loggers if results else ():
        if isinstance(logger, FaultTolerantLogger) and trainer.is_global_zero:
            logger.log_result(params, results)


def fit(trainer: Trainer, stage: Stage, data: NLADataModule, start: str | None) -> None:
    """Train up to the last step, starting at the newest checkpoint. Raises NLAError if it ended earlier."""
    with warnings.catch_warnings():
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        trainer.fit(stage, data, ckpt_path=resume_point(stage, trainer, start), weights_only=True)
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, Checkpointing):
            callback.stop.check(stage.name)
    if trainer.interrupted or (trainer.global_step < stage.steps and not trainer.fast_dev_run):  # pyright: ignore[reportAttributeAccessIssue]
        raise TrainingError(
            f"stage {stage.name} stopped at step {trainer.global_step} of {stage.steps}: nothing was exported; "
            "the same command continues it"
        )


def resume_point(stage: Stage, trainer: Trainer, start: str | None) -> Path | None:
    """The checkpoint to continue from, or None. Raises CheckpointError if one is required and none fits."""
    folder = Path(trainer.default_root_dir)
    sharded = isinstance(trainer.strategy, ModelParallelStrategy)
    identity = run_identity(stage.name, stage.nla, start, trainer.world_size)
    newest = None
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, Checkpointing):
            newest = callback.newest(folder, identity, sharded=sharded)
    if newest is None and is_pair(folder / "nla"):
        raise CheckpointError(f"{folder}: the stage has ended and cannot be made longer: it has no checkpoint")
    return None if newest is None else newest.state
