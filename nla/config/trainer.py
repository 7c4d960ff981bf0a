"""Lightning's Trainer as `hardware.trainer` names it: its keys, its strategy, and how many ranks must have started."""

import inspect
from collections.abc import Mapping
from typing import Any, Literal

from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from nla.config.targets import suggestion
from nla.errors import ConfigError

Gather = Literal["once", "blocks"]


def with_strategy(trainer: Mapping[str, Any], adapter: str) -> dict[str, Any]:
    """A Trainer's arguments, with `fsdp2` replaced by Lightning's ModelParallelStrategy.

    `strategy` may name one for each kind of adapter: `{full: fsdp2, lora: ddp}`. Raises ConfigError.
    """
    chosen = trainer.get("strategy", "auto")
    if isinstance(chosen, Mapping):
        if adapter not in chosen:
            raise ConfigError(f"hardware.trainer.strategy={dict(chosen)}: has none for adapter={adapter}")
        chosen = chosen[adapter]
    if chosen == "fsdp2":
        if adapter == "lora":
            raise ConfigError(
                "hardware.trainer.strategy=fsdp2 with adapter=lora: adapters share one copy of the weights, which is "
                "not sharded; use hardware.trainer.strategy=ddp"
            )
        chosen = ModelParallelStrategy()
    return {**trainer, "strategy": chosen}


def check_ranks(trainer: Mapping[str, Any]) -> None:
    """Raises ConfigError unless the number of started ranks is the config's number of devices.

    Ranks come from torchrun or SLURM. A rank unaware of the others would train alone into the same run folder.
    """
    devices, nodes = trainer.get("devices"), trainer.get("num_nodes", 1)
    if not isinstance(devices, int):
        return
    started = 1
    for environment in (TorchElasticEnvironment, SLURMEnvironment):
        if environment.detect():
            started = environment().world_size()
            break
    if started != devices * nodes:
        several = f"--nnodes {nodes} " if nodes > 1 else ""
        raise ConfigError(
            f"hardware.trainer.devices={devices} on num_nodes={nodes} needs {devices * nodes} processes, started were "
            f"{started}: use torchrun {several}--nproc-per-node {devices}, or set hardware (docs/guides/multi-node.md)"
        )


def check_trainer(arguments: Mapping[str, Any], key: str) -> None:
    known = set(inspect.signature(Trainer).parameters)
    for name in arguments:
        if name not in known:
            raise ConfigError(f"{key}.{name}: Lightning's Trainer takes no such key{suggestion(name, known)}")
