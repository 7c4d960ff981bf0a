"""The programs behind train.py and evaluate.py: check the config, build the parts, run them, leave the run folder.

    runs/<name>/config.yaml            resolved, without secrets
    runs/<name>/stages/<stage>/        checkpoints and metrics; nla/ in it once the stage is done
    runs/<name>/nla/                   the final pair

A stage whose pair stands is not run again, so the same command continues where it stopped.
"""

import logging
import os
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import rich
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric import Fabric
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from nla.autoencoder import NLA
from nla.backbone import DTYPES, QUANTIZED, usable_device
from nla.callbacks import Checkpointing, StateFile, Together, Tolerant
from nla.components import check_components
from nla.config import STAGE_OWN, check_evaluate, check_train, model_depth, parse_data, plain_config
from nla.data.datamodule import NLADataModule
from nla.data.shardmodule import ShardDataModule
from nla.data.shards import ShardSource
from nla.data.source import Source
from nla.errors import CheckpointError, ConfigError, NLAError, TrainingError
from nla.lock import locked
from nla.metadata import read_yaml
from nla.parallel import check_ranks, whole_pair, with_strategy
from nla.planning.gather import resolve_gather
from nla.prompts import Templates
from nla.runs import (
    CONFIG,
    copy_pair,
    finished,
    is_pair,
    pinned_revision,
    record_config,
    run_folder,
    stage_facts,
)
from nla.settings import EvaluateSettings, TrainSettings
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
PRECISIONS = {"32": "float32", "bf16": "bfloat16", "16": "float16"}  # nothing is trained: no weights in fp32 beside
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


def evaluate(cfg: DictConfig) -> Path:
    """Evaluate a saved pair, or every job of a sweep with a summary; returns the folder written. Raises NLAError.

    Jobs that were evaluated already are not evaluated again.
    """
    from nla.evaluation.shares import is_first
    from nla.evaluation.sweep import METRICS, is_sweep, job_folders, summarize  # plots, needed by this program alone

    settings = check_evaluate(cfg)
    sweep = Path(settings.nla)
    if not is_sweep(sweep):
        return evaluate_pair(cfg, settings)
    for job in job_folders(sweep):
        if is_pair(job / "nla") and not (job / METRICS).is_file():
            evaluate_pair(cfg, settings.model_copy(update={"nla": str(job / "nla"), "output": None}))
    if is_first():
        summarize(sweep, rich.get_console())
    return sweep


def evaluate_pair(cfg: DictConfig, settings: EvaluateSettings) -> Path:
    """Write metrics.json and samples.parquet of one pair, print the tables, return their folder."""
    plain = plain_config(cfg)
    data = plain["data"] if settings.data is not None else recorded_data(Path(settings.nla))
    seed_everything(settings.seed, workers=True, verbose=False)
    device = evaluation_device(plain["hardware"]["trainer"])
    run = run_folder(Path(settings.nla))
    dtype = settings.dtype or evaluation_dtype(run, settings.hardware.trainer)
    target = Target.of_pair(settings.nla, dtype).to(device)
    pair = NLA.from_pretrained(settings.nla, dtype=dtype, adapter="saved", base=target.model).to(device)
    output = Path(settings.output) if settings.output else default_output(Path(settings.nla), run)
    from nla.evaluation import run as run_evaluation  # needed by this program alone

    how = instantiate(settings.evaluation, _convert_="all")
    size = how.batch_size
    loader = build_data(data, target, split="joint", explanations=False, batch_size=size, seed=settings.seed)
    run_evaluation(pair, target, loader, output, settings=how, seed=settings.seed, run_folder=run, dtype=dtype)
    return output


def evaluation_dtype(run: Path | None, trainer: Mapping[str, Any]) -> str:
    """`model.dtype` of the run that made the pair; for a pair from elsewhere that which `hardware` computes in.

    Raises ConfigError.
    """
    if run is not None:
        recorded = read_yaml(run / CONFIG).get("model")
        dtype = recorded.get("dtype") if isinstance(recorded, dict) else None
        if dtype in (*DTYPES, QUANTIZED):
            return str(dtype)
    precision = str(trainer.get("precision", "32-true")).partition("-")[0]
    if precision not in PRECISIONS:
        raise ConfigError(
            f"hardware.trainer.precision={trainer.get('precision')}: no type of weights; give dtype=bfloat16, "
            "or another of float32, float16, nf4"
        )
    return PRECISIONS[precision]


def evaluation_device(trainer: Mapping[str, Any]) -> torch.device:
    """This rank's device by `hardware.trainer`; several ranks have found each other afterwards.

    Raises ConfigError where this machine has no such device, or where other ranks were started than the config has.
    """
    accelerator = trainer["accelerator"]
    device = usable_device(accelerator, "hardware.trainer.accelerator", "use hardware=cpu")
    check_ranks(trainer)
    if trainer["devices"] == trainer["num_nodes"] == 1:
        return device
    nodes: int = trainer["num_nodes"]
    fabric = Fabric(accelerator=accelerator, devices=trainer["devices"], num_nodes=nodes, strategy="ddp")
    fabric.launch()
    return fabric.device


def default_output(pair: Path, run: Path | None) -> Path:
    """`evaluation/` of the run; of the stage, for a pair that a stage left."""
    parent = pair.resolve().parent
    return Path(os.path.relpath(parent if run and parent.parent.name == "stages" else run or Path())) / "evaluation"


def recorded_data(pair: Path) -> dict[str, Any]:
    """The data config of the run that made the pair. It came with a checkpoint: it may name nothing but our classes."""
    run = run_folder(pair)
    if run is None:
        raise ConfigError(f"nla={pair}: no run's config.yaml beside the pair; say what to evaluate on: data=<name>")
    data = read_yaml(run / CONFIG).get("data")
    if not isinstance(data, dict):
        raise ConfigError(f"{run / CONFIG}: has no data section; say what to evaluate on: data=<name>")
    check_components(data, "data", trusted=False)
    parse_data(data)
    return data
