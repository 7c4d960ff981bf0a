"""The public names of `nla` and of each room: a contract, written here by hand."""

import importlib
from pathlib import Path

import pytest

import nla

PUBLIC = {
    "nla": ["NLA", "Target", "check_hook", "compare", "from_hook", "read_chat"],
    "nla.commands": [],
    "nla.config": [],
    "nla.core": [],
    "nla.data": ["SPLITS", "Claim", "Document", "GroundTruth", "Source", "TextSource"],
    "nla.evaluation": ["Corpus", "Evaluation", "EvaluationSettings", "evaluate", "read_samples", "run"],
    "nla.models": [],
    "nla.planning": [],
    "nla.pretraining": ["Architecture", "Lessons", "Recipe", "pretrain", "train_tokenizer"],
    "nla.training": [],
}


def test_every_room_is_listed() -> None:
    folder = Path(nla.__file__).parent
    rooms = {f"nla.{path.parent.name}" for path in folder.glob("*/__init__.py")}
    assert {*rooms, "nla"} == set(PUBLIC)


@pytest.mark.parametrize("room", PUBLIC)
def test_public_names(room: str) -> None:
    module = importlib.import_module(room)
    assert sorted(getattr(module, "__all__", [])) == sorted(PUBLIC[room])
    for name in PUBLIC[room]:
        assert getattr(module, name) is not None
