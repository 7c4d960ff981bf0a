"""The config that a run has recorded, read as this version would have written it.

Runs of version 0.1.0 name classes and keys as they were called before the package was put in order.
"""

from pathlib import Path
from typing import Any

from nla.models.pretrained.metadata import read_yaml

CONFIG = "config.yaml"
MOVED = {
    "nla.callbacks.": "nla.training.callbacks.",
    "nla.data.shards.ShardSource": "nla.data.shards.source.ShardSource",
    "nla.optim.": "nla.training.optim.",
    "nla.rewards.": "nla.training.rewards.",
    "nla.stages.joint.Sampling": "nla.models.sampling.SamplingParams",
    "nla.stages.": "nla.training.stages.",
    "nla.teachers.": "nla.data.teachers.",
    "nla.world.": "nla.data.world.",
}
RENAMED = {"rollout": "sampling"}  # keys of the config and of its joint stage


def read_recorded(run: Path) -> dict[str, Any]:
    """The recorded config of a run's folder. Raises ReleaseError for a file that is no safe YAML mapping."""
    config = renamed(read_yaml(run / CONFIG))
    stages = config.get("stage")
    if isinstance(stages, dict) and isinstance(stages.get("joint"), dict):
        stages["joint"] = _with_new_keys(stages["joint"])
    return _with_new_keys(config)


def renamed(node: Any) -> Any:
    """Plain containers with every `_target_` under its present path."""
    if isinstance(node, dict):
        return {key: _moved(value) if key == "_target_" else renamed(value) for key, value in node.items()}
    return [renamed(value) for value in node] if isinstance(node, list) else node


def _moved(path: Any) -> Any:
    for before, now in MOVED.items():
        if isinstance(path, str) and path.startswith(before):
            return now + path[len(before) :]
    return path


def _with_new_keys(node: dict[str, Any]) -> dict[str, Any]:
    return {RENAMED.get(key, key): value for key, value in node.items()}
