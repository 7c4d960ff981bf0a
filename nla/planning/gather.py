"""`hardware.gather=auto`: the planner decides before the run how sharded weights are gathered for sampling."""

from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from nla.config.check import plain_config
from nla.config.compose import config_folder
from nla.config.schema import TrainSettings
from nla.config.trainer import Gather, with_strategy
from nla.models.pretrained.loading import find_halves
from nla.models.pretrained.metadata import METADATA, read_metadata
from nla.planning import advice
from nla.planning.facts import GIB, Assumptions
from nla.planning.reading import tasks_of

AUTO = "auto"


def resolve_gather(cfg: DictConfig, settings: TrainSettings) -> None:
    """Put `once` or `blocks` in the place of `auto`, and print which and why. Raises ConfigError, ModelError.

    The memory is that of this machine's GPUs where it has any, else `planning`'s. A saved pair is planned by its own
    base model and layer.
    """
    if settings.hardware.gather != AUTO:
        return
    plain = plain_config(cfg)
    trainer = plain["hardware"]["trainer"]
    gather: Gather = "once"
    if isinstance(with_strategy(trainer, settings.adapter.kind)["strategy"], ModelParallelStrategy):
        facts = device_facts(trainer["accelerator"])
        tasks, _ = tasks_of(*_of_pair(settings, plain), facts)
        wanted, why = advice.gathering(tasks, facts)
        gather = advice.runnable(wanted)
        if rank_zero_only.rank == 0:
            print(f"hardware.gather=auto is {gather}: {why} ({facts.device})", flush=True)
    cfg.hardware.gather = settings.hardware.gather = gather


def _of_pair(settings: TrainSettings, plain: dict[str, Any]) -> tuple[TrainSettings, dict[str, Any]]:
    """Model and layer of the saved pair that is trained on, if there is one."""
    if settings.nla is None:
        return settings, plain
    about = read_metadata(find_halves(settings.nla, patterns=[f"*{METADATA}"])[1])
    settings = settings.model_copy(deep=True)
    settings.model.id, settings.model.revision = about.base_model, about.base_revision
    settings.layer.index = about.layer
    return settings, {**plain, "model": {**plain["model"], "shape": None}}


def device_facts(accelerator: str) -> Assumptions:
    """What `conf/planning/` assumes of such a device, with this machine's own memory where it is a GPU."""
    facts = assumed("cpu" if accelerator == "cpu" else "h100")
    if accelerator == "cpu" or not torch.cuda.is_available():
        return facts
    own = torch.cuda.get_device_properties(0)
    return facts.model_copy(update={"memory_gib": own.total_memory / GIB, "device": own.name})


def assumed(device: str) -> Assumptions:
    """What a file of `conf/planning/` says. Raises ConfigError."""
    folder = config_folder() / "planning"
    own = DictConfig(OmegaConf.load(folder / f"{device}.yaml"))
    bases = [OmegaConf.load(folder / f"{name}.yaml") for name in own.pop("defaults", [])]
    return Assumptions.model_validate(OmegaConf.to_container(OmegaConf.merge(*bases, own)))
