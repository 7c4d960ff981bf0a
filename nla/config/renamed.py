"""Recorded run configs of earlier versions: what has been renamed since, and the one reader that maps it."""

from pathlib import Path
from typing import Any

from nla.models.pretrained.metadata import read_yaml

CONFIG = "config.yaml"
CLASSES = {
    "nla.callbacks.Alarms": "nla.training.callbacks.Alarms",
    "nla.callbacks.Checkpointing": "nla.training.callbacks.Checkpointing",
    "nla.callbacks.MetricsFile": "nla.training.callbacks.MetricsFile",
    "nla.callbacks.Progress": "nla.training.callbacks.Progress",
    "nla.callbacks.Samples": "nla.training.callbacks.Samples",
    "nla.callbacks.Summary": "nla.training.callbacks.Summary",
    "nla.data.shards.ShardSource": "nla.data.shards.source.ShardSource",
    "nla.optim.MuonAdamW": "nla.training.optim.MuonAdamW",
    "nla.rewards.Divergence": "nla.training.rewards.KLToReference",
    "nla.rewards.Reward": "nla.training.rewards.Reward",
    "nla.stages.JointStage": "nla.training.stages.JointStage",
    "nla.stages.ReconstructorStage": "nla.training.stages.ReconstructorStage",
    "nla.stages.VerbalizerStage": "nla.training.stages.VerbalizerStage",
    "nla.stages.joint.Sampling": "nla.models.sampling.SamplingParams",
    "nla.training.stages.joint.Sampling": "nla.models.sampling.SamplingParams",
    "nla.training.rewards.Divergence": "nla.training.rewards.KLToReference",
    "nla.world.WorldSource": "nla.data.world.WorldSource",
}


KEYS = {"rollout": "sampling"}  # of the config, and of its joint stage
ADDED = {  # keys that are required since, with what held before
    "nla.training.optim.MuonAdamW": {"betas": [0.9, 0.98]},
    "nla.data.text.TextSource": {"max_chunks": None},
    "nla.data.world.WorldSource": {"emphasis": None},
    "nla.training.stages.JointStage": {"gate_rows": 0, "error": "plain", "reworded": 0.0},
    "nla.training.stages.ReconstructorStage": {
        "head_start": "identity",
        "head_texts": 4096,
        "error": "plain",
        "reworded": 0.0,
    },
}


def read_recorded(run: Path) -> dict[str, Any]:
    """The config.yaml of a run folder, in today's names. Raises ReleaseError, which names the file."""
    config = _with_new_keys(renamed(read_yaml(run / CONFIG)))
    stages = config.get("stage")
    if isinstance(stages, dict):
        config["stage"] = {name: _with_data(_with_new_keys(node)) for name, node in stages.items()}
    return config


def renamed(node: Any) -> Any:
    """A copy of a recorded node in which every `_target_` of an earlier version has its present path."""
    if isinstance(node, list):
        return [renamed(item) for item in node]
    if not isinstance(node, dict):
        return node
    copy = {key: CLASSES.get(str(value), value) if key == "_target_" else renamed(value) for key, value in node.items()}
    return ADDED.get(str(copy.get("_target_")), {}) | copy


def _with_data(stage: Any) -> Any:
    data = stage.get("data") if isinstance(stage, dict) else None
    return {**stage, "data": {"early": 0.0, **data}} if isinstance(data, dict) else stage


def _with_new_keys(node: Any) -> Any:
    return {KEYS.get(key, key): value for key, value in node.items()} if isinstance(node, dict) else node
