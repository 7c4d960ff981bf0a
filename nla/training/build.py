"""From settings to the parts of a stage: its pair and target, the stage itself, callbacks and loggers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from nla import files
from nla.config.check import model_depth
from nla.config.schema import TrainSettings
from nla.config.targets import takes
from nla.errors import ConfigError
from nla.models.backbone import resolve
from nla.models.lora import has_lora, lora_strength
from nla.models.pair import NLA
from nla.models.pretrained.loading import find_halves
from nla.models.prompts import Templates
from nla.models.target import Target
from nla.training.checkpoints import RunIdentity
from nla.training.stages.base import Stage

WEIGHTS = "*.safetensors"
# Lightning warns about choices made on purpose: the stage reads activations after the transfer, dropout stays off.
EXPECTED_WARNINGS = (
    ".*overridden `on_after_batch_transfer`.*",
    r"Found \d+ module\(s\) in eval mode.*",
    ".*does not have many workers.*",
    ".*`IterableDataset` has `__len__` defined.*",
    ".*LeafSpec.*is deprecated.*",
    r".*recommended to use `self\.log.*sync_dist=True.*",  # the values are reduced before
)
CHATTY = ("lightning.pytorch", "huggingface_hub.serialization._torch")  # devices, tips, each file saved


def build_stage(settings: TrainSettings, name: str, start: str | None) -> Stage:
    """A stage of the config with the modules of the pair `start`, or of the target."""
    target = starting_target(settings, start)
    pair = starting_pair(settings, start, target)
    return instantiate({**settings.stage[name].arguments, "_partial_": True}, _convert_="all")(nla=pair, target=target)


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


def run_identity(name: str, pair: NLA, start: str | None, world_size: int) -> RunIdentity:
    """What a checkpoint of this stage must have in common with the run that continues from it.

    The start pair is the KL reference, and what frozen halves are loaded from; neither is in the checkpoint.
    """
    rank, alpha = lora_strength(pair.verbalizer.model) if has_lora(pair.verbalizer.model) else (None, None)
    base = Path(resolve(pair.base_model))
    revision = files.digest(base, WEIGHTS) if base.is_dir() else pair.base_revision
    return {
        "stage": name,
        "layer": pair.layer,
        "width": pair.d_model,
        "base model": pair.base_model,
        "base revision": revision,
        "LoRA rank": rank,
        "LoRA alpha": alpha,
        "start pair": None if start is None else "+".join(files.digest(half, WEIGHTS) for half in find_halves(start)),
        "world_size": world_size,
    }


def build_all(group: Mapping[str, Any], folder: Path | None = None) -> list[Any]:
    """The objects of a config group; an entry set to null is left out.

    Those whose constructor takes `save_dir`, as Lightning's loggers do, get `folder` unless they name one.
    """
    built = []
    for name, node in group.items():
        if node is not None:
            try:
                save_dir = {} if folder is None or not takes(node, "save_dir") else {"save_dir": str(folder)}
                built.append(instantiate({**save_dir, **node}, _convert_="all"))
            except (ModuleNotFoundError, InstantiationException) as error:
                cause = error if isinstance(error, ModuleNotFoundError) else error.__cause__
                if not isinstance(cause, ImportError):
                    raise
                raise ConfigError(
                    f"{name}: {node['_target_']} needs a package that is not installed ({cause}); "
                    f"pip install 'nla[{name}]', or leave it out with {name}=null in its group"
                ) from error
    return built
