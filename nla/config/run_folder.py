"""The folder of a run: its recorded config, which stages are finished, and whose checkpoints may continue in it."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nla import files
from nla.config.check import text_config
from nla.config.renamed import CONFIG, read_recorded
from nla.config.schema import ModelSettings
from nla.errors import ConfigError
from nla.models.backbone import resolve
from nla.models.pretrained.hub import cached_commit
from nla.models.pretrained.loading import HALVES
from nla.models.pretrained.metadata import read_metadata
from nla.redact import redacted

# A run folder belongs to one value of each of these and of a begun stage's keys, but FREE, which changes no result.
FREE = ("trainer", "micro_batch_size", "activation_checkpointing", "gather")
FIXED = ("model", "layer", "adapter", "data.source", "data.positions_per_document", "data.min_context", "seed")
WEIGHTS = "*.safetensors"


def record_config(plain: Mapping[str, Any], run: Path) -> None:
    """Write config.yaml, or refuse a folder that holds a different run. Raises ConfigError."""
    public = redacted(plain)
    path = run / CONFIG
    if path.is_file():
        recorded = read_recorded(run)
        for key in (*FIXED, *_begun(public["stage"], run / "stages")):
            before, now = _at(recorded, key), _at(public, key)
            if before != now and not _extends(key, before, now, public["stages"], run):
                raise ConfigError(
                    f"{run} holds a run with another {key} ({before}, now {now}): "
                    "choose name=<another>, or remove the folder"
                )
    run.mkdir(parents=True, exist_ok=True)
    files.write_text(path, yaml.safe_dump(public, sort_keys=False, allow_unicode=True))


def pinned_revision(model: ModelSettings, run: Path) -> str | None:
    """The commit of the hub's model, looked up once: a begun run keeps its own wherever the branch moves.

    None for a folder. Raises ModelError with the remedy, ConfigError where `model.shape` is another model's.
    """
    if model.revision is None and (run / CONFIG).is_file():
        recorded = read_recorded(run).get("model")
        if isinstance(recorded, dict) and recorded.get("id") == model.id:
            return recorded.get("revision")
    text_config(model)
    return cached_commit(resolve(model.id), model.revision) or model.revision


def _begun(stages: Mapping[str, Any], folder: Path) -> list[str]:
    """Keys of the stages that have started. One that has not ended may still be made longer or shorter."""
    keys = [(name, key) for name in stages if (folder / name).is_dir() for key in stages[name] if key not in FREE]
    return [f"stage.{name}.{key}" for name, key in keys if key != "steps" or is_pair(folder / name / "nla")]


def _extends(key: str, before: Any, now: Any, stages: list[str], run: Path) -> bool:
    """Whether the change makes a finished stage longer whose pair no later stage has started from."""
    path = key.split(".")
    if path[0] != "stage" or path[2:] != ["steps"] or not isinstance(before, int) or now < before:
        return False
    later = stages[stages.index(path[1]) + 1 :] if path[1] in stages else ()
    for stage in later:
        if (run / "stages" / stage).is_dir():
            raise ConfigError(
                f"{key}={now}: stage {stage} has started from the pair that {path[1]} left after {before} steps: "
                f"choose name=<another>, or remove {run / 'stages' / stage}"
            )
    return True


def _at(node: Any, key: str) -> Any:
    for name in key.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node


def is_pair(folder: Path) -> bool:
    """Whether both halves are in the folder: `save_pretrained` moves them in together, once complete."""
    return all((folder / half).is_dir() for half in HALVES)


def finished(pair: Path, steps: int) -> bool:
    """Whether a stage has exported its pair after this many steps; a pair without a count is accepted."""
    files.restore_folder(pair)
    if not is_pair(pair):
        return False
    trained = (read_metadata(pair / HALVES[0]).training or {}).get("steps")
    return not isinstance(trained, int) or trained >= steps


def copy_pair(source: Path, destination: Path) -> Path:
    """Copy the pair, unless an identical one is already there; a kill never leaves half of one."""
    files.restore_folder(destination)
    if not (is_pair(destination) and files.digest(destination) == files.digest(source)):
        with files.new_folder(destination) as scratch:
            shutil.copytree(source, scratch, dirs_exist_ok=True)
    return destination


def run_folder(pair: Path) -> Path | None:
    """runs/<name> of runs/<name>/nla and of runs/<name>/stages/<stage>/nla; None for a pair from elsewhere."""
    for folder in list(pair.resolve().parents)[:3]:
        if (folder / CONFIG).is_file() and (folder / "stages").is_dir():
            return Path(os.path.relpath(folder))
    return None
