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
    """The settings with `auto` replaced by `once` or `blocks`; prints which and why. Raises ConfigError, ModelError.

    The memory is that of this machine's GPUs if it has any, else `planning`'s. A saved pair is planned with its own
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
    metadata = read_metadata(find_halves(settings.nla, patterns=[f"*{METADATA}"])[1])
    model = settings.model.changed(id=metadata.base_model, revision=metadata.base_revision, shape=None)
    return settings.changed(model=model, layer__index=metadata.layer)


def device_facts(accelerator: str) -> Assumptions:
    """What `conf/planning/` assumes of such a device, with the memory of this machine's GPU if it has one."""
    facts = assumed("cpu" if accelerator == "cpu" else "h100")
    if accelerator == "cpu" or not torch.cuda.is_available():
        return facts
    gpu = torch.cuda.get_device_properties(0)
    return facts.model_copy(update={"memory_gib": gpu.total_memory / GIB, "device": gpu.name})


def assumed(device: str) -> Assumptions:
    """The assumptions of a file in `conf/planning/`. Raises ConfigError."""
    folder = config_folder() / "planning"
    device_config = DictConfig(OmegaConf.load(folder / f"{device}.yaml"))
    bases = [OmegaConf.load(folder / f"{name}.yaml") for name in device_config.pop("defaults", [])]
    return Assumptions.model_validate(OmegaConf.to_container(OmegaConf.merge(*bases, device_config)))
