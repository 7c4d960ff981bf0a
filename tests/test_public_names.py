"""The public names of `nla` and of each room, nested ones too: a contract, written here by hand."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import nla

PUBLIC = {
    "nla": ["NLA", "Target", "check_hook", "compare", "from_hook", "read_chat"],
    "nla.app": ["Edit", "Explanation", "Session"],
    "nla.commands": [],
    "nla.config": [],
    "nla.core": [],
    "nla.data": ["SPLITS", "Claim", "Document", "GroundTruth", "Source", "TextSource"],
    "nla.data.prepare": ["Folder", "Plan", "explain_shards", "read_corpus", "write_released"],
    "nla.data.shards": [],
    "nla.data.teachers": [
        "AnthropicTeacher",
        "CachedTeacher",
        "Explanation",
        "LocalTeacher",
        "OpenAITeacher",
        "Passage",
        "ServiceTeacher",
        "TargetTeacher",
        "Teacher",
        "TruthTeacher",
    ],
    "nla.data.world": ["ScenesSource", "WorldSource"],
    "nla.evaluation": [
        "Evaluation", "EvaluationData", "EvaluationSettings", "Subject", "evaluate", "read_samples", "read_subject",
        "run",
    ],
    "nla.evaluation.prompts": ["load"],
    "nla.evaluation.suites": ["SUITES", "Suite", "chosen"],
    "nla.models": [],
    "nla.models.pretrained": [],
    "nla.models.reading": [],
    "nla.models.sampling": ["SamplingParams", "sampler"],
    "nla.planning": [],
    "nla.pretraining": ["Architecture", "Lessons", "Recipe", "pretrain", "train_tokenizer"],
    "nla.report": ["Report", "TextRecord", "TokenRecord", "read_report", "read_tokens", "write_report"],
    "nla.training": [],
    "nla.training.callbacks": [
        "Alarms", "Checkpointing", "Distributions", "FaultTolerantLogger", "MetricsFile", "Progress", "RankFailure",
        "Samples", "StateFile", "Summary",
    ],
    "nla.training.preflight": ["Check", "preflight", "require"],
    "nla.training.stages": ["JointStage", "ReconstructorStage", "VerbalizerStage"],
}  # fmt: skip
LIGHT = ("nla", "nla.evaluation", "nla.models.pair", "nla.data", "nla.data.teachers")  # for notebooks and services


def test_every_room_is_listed() -> None:
    folder = Path(nla.__file__).parent
    rooms = {".".join(("nla", *path.parent.relative_to(folder).parts)) for path in folder.rglob("__init__.py")}
    assert rooms == set(PUBLIC)


@pytest.mark.parametrize("room", PUBLIC)
def test_public_names(room: str) -> None:
    module = importlib.import_module(room)
    assert sorted(getattr(module, "__all__", [])) == sorted(PUBLIC[room])
    for name in PUBLIC[room]:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("room", [room for room in PUBLIC if room != "nla"])
def test_a_room_says_what_it_may_import_and_what_is_public(room: str) -> None:
    text = importlib.import_module(room).__doc__ or ""
    assert "May import" in text and "Public" in text


def test_what_notebooks_import_loads_neither_lightning_nor_hydra() -> None:
    code = f"import sys, {', '.join(LIGHT)}; print(sorted({{'lightning', 'hydra', 'omegaconf'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
