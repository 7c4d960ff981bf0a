"""`hardware.gather=auto`: the planner decides before the run how sharded weights are gathered for sampling."""

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from nla.config.compose import config_folder
from nla.config.schema import TrainSettings
from nla.config.trainer import Gather, with_strategy
from nla.models.pretrained.loading import find_halves
from nla.models.pretrained.metadata import METADATA, read_metadata
from nla.planning import advice
from nla.planning.facts import GIB, Assumptions
from nla.planning.reading import tasks_of

AUTO = "auto"


def with_gather(settings: TrainSettings) -> TrainSettings:
    """The settings with `once` or `blocks` in the place of `auto`; says which and why. Raises ConfigError, ModelError.

    The memory is that of this machine's GPUs where it has any, else `planning`'s. A saved pair is planned by its own
    base model and layer.
    """
    hardware = settings.hardware
    if hardware.gather != AUTO:
        return settings
    gather: Gather = "once"
    if isinstance(with_strategy(hardware.trainer, settings.adapter.kind)["strategy"], ModelParallelStrategy):
        facts = device_facts(hardware.trainer["accelerator"])
        tasks, _ = tasks_of(_of_pair(settings), facts)
        wanted, why = advice.gathering(tasks, facts)
        gather = advice.runnable(wanted)
        if rank_zero_only.rank == 0:
            print(f"hardware.gather=auto is {gather}: {why} ({facts.device})", flush=True)
    stages = {
        name: stage.changed(gather=gather) if stage.arguments.get("gather") == AUTO else stage
        for name, stage in settings.stage.items()
    }
    return settings.changed(hardware__gather=gather, stage=stages)


def _of_pair(settings: TrainSettings) -> TrainSettings:
    """Model and layer of the saved pair that is trained on, if there is one."""
    if settings.nla is None:
        return settings
    about = read_metadata(find_halves(settings.nla, patterns=[f"*{METADATA}"])[1])
    model = settings.model.changed(id=about.base_model, revision=about.base_revision, shape=None)
    return settings.changed(model=model, layer__index=about.layer)


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
