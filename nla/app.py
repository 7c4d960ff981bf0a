"""The program behind train.py: check the config, build the parts, run them, leave the run folder.

    runs/<name>/config.yaml            resolved, without secrets
    runs/<name>/stages/<stage>/        checkpoints and metrics; nla/ in it once the stage is done
    runs/<name>/nla/                   the final pair

A stage whose pair stands is not run again, so the same command continues where it stopped.
"""

import logging
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from nla.autoencoder import NLA
from nla.callbacks import Checkpointing, StateFile, Together, Tolerant
from nla.config import STAGE_OWN, check_train, model_depth, plain_config
from nla.data.datamodule import NLADataModule
from nla.data.shardmodule import ShardDataModule
from nla.data.shards import ShardSource
from nla.data.source import Source
from nla.errors import CheckpointError, ConfigError, NLAError, TrainingError
from nla.lock import locked
from nla.parallel import check_ranks, whole_pair, with_strategy
from nla.planning.gather import resolve_gather
from nla.prompts import Templates
from nla.runs import (
    copy_pair,
    finished,
    is_pair,
    pinned_revision,
    record_config,
    stage_facts,
)
from nla.settings import TrainSettings
from nla.stages.base import Stage
from nla.target import Target

# Lightning's remarks on what is meant here: the stage reads activations after the transfer, dropout stays off.
EXPECTED_WARNINGS = (
    ".*overridden `on_after_batch_transfer`.*",
    r"Found \d+ module\(s\) in eval mode.*",
    ".*does not have many workers.*",
    ".*`IterableDataset` has `__len__` defined.*",
    ".*LeafSpec.*is deprecated.*",
    r".*recommended to use `self\.log.*sync_dist=True.*",  # the values are reduced before
)
CHATTY = ("lightning.pytorch", "huggingface_hub.serialization._torch")  # devices, tips, each file saved


def train(cfg: DictConfig) -> Path:
    """Run the config's stages in order and return the folder of the final pair. Raises NLAError."""
    settings = check_train(cfg)
    run = Path(settings.run_dir)
    if settings.nla is None:
        settings.model.revision = cfg.model.revision = pinned_revision(settings.model, run)
        cfg.layer.index = settings.layer.block(model_depth(settings.model))
    check_ranks(settings.hardware.trainer)
    resolve_gather(cfg, settings)
    if settings.preflight:
        from nla.preflight import require  # which is built from the parts of this module

        require(cfg)
    first = rank_zero_only.rank == 0  # as the launcher says, before there is a trainer
    with locked(run) if first else nullcontext():
        if first:
            record_config(plain_config(cfg), run)
        pair = settings.nla
        for name in settings.stages:
            exported = run / "stages" / name / "nla"
            if not finished(exported, settings.stage[name].steps):
                run_stage(cfg, settings, name, pair)
            pair = str(exported)
        return copy_pair(Path(str(pair)), run / "nla") if first else run / "nla"


def run_stage(cfg: DictConfig, settings: TrainSettings, name: str, start: str | None) -> None:
    """Train one stage from the pair that the stage before it left (`start`), or from the target, and export it."""
    folder = Path(settings.run_dir) / "stages" / name
    cfg.stage_dir = str(folder)
    plain = plain_config(cfg)
    seed_everything(settings.seed, workers=True, verbose=False)
    stage = build_stage(settings, plain, name, start)
    target, options = stage.target, plain["stage"][name]
    for logger in CHATTY:
        logging.getLogger(logger).setLevel(logging.WARNING)
    together = Together()
    trainer = Trainer(
        default_root_dir=folder,
        max_steps=options["steps"],
        max_epochs=-1,
        check_val_every_n_epoch=None,  # validation goes by steps: an epoch of the data has no meaning for the trainer
        enable_model_summary=False,
        use_distributed_sampler=False,  # the data module shards by itself
        callbacks=[*build_all(plain["callbacks"]), together],
        logger=[Tolerant(logger) for logger in build_all(plain["logger"])],
        plugins=[StateFile()],
        **with_strategy(plain["hardware"]["trainer"], settings.adapter.kind),
        **options["trainer"],
    )
    data = build_data(plain["data"], target, seed=settings.seed, **options["data"])
    if isinstance(data, ShardDataModule):
        data.check_against(target)
    with together.held():
        fit(trainer, stage, data, start)
        pair = whole_pair(stage.nla, lambda: starting_pair(settings, start, stage.target))
        if trainer.is_global_zero:
            pair.save_pretrained(folder / "nla", stage=name, training={"steps": options["steps"]})
        trainer.strategy.barrier()


def fit(trainer: Trainer, stage: Stage, data: NLADataModule, start: str | None) -> None:
    """Train up to the last step, from the newest checkpoint on. Raises NLAError where it ended before."""
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


def build_stage(settings: TrainSettings, plain: Mapping[str, Any], name: str, start: str | None) -> Stage:
    """A stage of the config with its own modules: those of the pair `start`, or of the target."""
    target = starting_target(settings, start)
    pair = starting_pair(settings, start, target)
    arguments = {key: value for key, value in plain["stage"][name].items() if key not in STAGE_OWN}
    return instantiate({**arguments, "_partial_": True}, _convert_="all")(nla=pair, target=target)


def resume_point(stage: Stage, trainer: Trainer, start: str | None) -> Path | None:
    """The state that the stage goes on from. Raises CheckpointError where there should be one and is none that fits."""
    folder = Path(trainer.default_root_dir)
    sharded = isinstance(trainer.strategy, ModelParallelStrategy)
    facts = stage_facts(stage.name, stage.nla, start, trainer.world_size)
    found = None
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, Checkpointing):
            found = callback.newest(facts, sharded=sharded)
    if found is None and is_pair(folder / "nla"):
        raise CheckpointError(f"{folder}: the stage has ended and cannot be made longer: it has no checkpoint")
    return None if found is None else found.state


def starting_target(settings: TrainSettings, start: str | None) -> Target:
    """The model that the saved pair reads, else the config's."""
    model = settings.model
    if start is None:
        return Target.from_pretrained(model.id, settings.layer.block(model_depth(model)), model.dtype, model.revision)
    return Target.of_pair(start, model.dtype)


def starting_pair(settings: TrainSettings, start: str | None, target: Target) -> NLA:
    """The saved pair, or an untrained one: copies of the target, or adapters on the target's own weights."""
    adapter = settings.adapter.model_dump(exclude={"kind"}) if settings.adapter.kind == "lora" else None
    model = settings.model
    if start is not None:
        return NLA.from_pretrained(start, dtype=model.dtype, adapter=adapter, base=target.model)
    return NLA.from_target(
        model.id,
        target.layer,
        Templates(**model.templates.model_dump()),
        marker=model.marker,
        injection_scale=model.injection_scale,
        mse_scale=model.mse_scale,
        adapter=adapter,
        dtype=model.dtype,
        revision=model.revision,
        base=target.model,
    )


def build_data(data: Mapping[str, Any], target: Target, **options: Any) -> NLADataModule:
    """The loader of a data config; `options` (split, batch_size, seed ...) go before its own settings."""
    reading = {key: value for key, value in data.items() if key not in ("path", "source")} | options
    source = build_source(data["source"])
    if isinstance(source, ShardSource):
        return ShardDataModule(source, target, **reading)
    return NLADataModule(source, target.tokenizer, **reading)


def build_source(node: Mapping[str, Any]) -> Source:
    """A mistake that the constructor finds is told as such. Raises NLAError."""
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        raise error.__cause__ if isinstance(error.__cause__, NLAError) else error from None


def build_all(group: Mapping[str, Any]) -> list[Any]:
    """The parts of a config group; one set to null is left out."""
    built = []
    for name, node in group.items():
        if node is not None:
            try:
                built.append(instantiate(node, _convert_="all"))
            except (ModuleNotFoundError, InstantiationException) as error:
                cause = error if isinstance(error, ModuleNotFoundError) else error.__cause__
                if not isinstance(cause, ImportError):
                    raise
                raise ConfigError(
                    f"{name}: {node['_target_']} needs a package that is not installed ({cause}); "
                    f"pip install 'nla[{name}]', or leave it out with {name}=null in its group"
                ) from error
    return built
