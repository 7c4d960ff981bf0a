"""nla steer: what it prints, and what it says to a word that is not there."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nla.commands import cli
from nla.commands.steer import steered
from nla.models.backbone import head_logits
from nla.models.pair import NLA
from nla.models.steering import edit_direction, steered_logits
from nla.models.target import Target

TEXT, EXPLANATION = "Tom walks to the", "It rains in the town. The town is small."


@pytest.fixture
def speaking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every explanation is the same well-formed text."""
    monkeypatch.setattr(NLA, "explain", lambda self, activation, **_: [[EXPLANATION]] * len(activation))


def test_what_is_printed(saved_nla: Path, speaking: None, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["steer", str(saved_nla), TEXT, "--replace", "town=harbour", "--tokens", "4"]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    for part in (EXPLANATION, "It rains in the harbour. The harbour is small.", "Next words", "random direction"):
        assert part in shown
    assert cli.main([*arguments, "--replace", "small=big", "--layer-position", "all", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["edited"] == "It rains in the harbour. The harbour is big."
    assert (found["text"], found["layer_position"], found["layer"], found["scale"]) == (TEXT, "all", 1, 1.0)
    assert {"next", "continuation"} == set(found["clean"]) == set(found["steered"]) == set(found["random"])


def test_the_numbers_are_those_of_the_formula(nla: NLA, target: Target, speaking: None) -> None:
    found: dict[str, Any] = steered(nla, target, TEXT, [("town", "harbour")], scale=2.0, tokens=3)
    ids = torch.tensor([target.tokenizer(TEXT)["input_ids"]])
    direction = edit_direction(nla, [EXPLANATION], [found["edited"]])
    assert found["norm"] == pytest.approx(float(direction.norm()))
    for way, scale in (("clean", 0.0), ("steered", 2.0)):
        logits = steered_logits(target, ids, torch.tensor([ids.shape[1] - 1]), direction, scale)[0, -1]
        probability, token = logits.softmax(-1).max(-1)
        first = found[way]["next"][0]
        assert first["token"] == target.tokenizer.decode([int(token)])
        assert first["probability"] == pytest.approx(float(probability), abs=1e-4)
    assert sum(word["probability"] for word in found["random"]["next"]) <= 1 + 1e-6
    hidden = target.model.model(ids).last_hidden_state[0, -1]
    assert found["clean"]["next"][0]["probability"] == pytest.approx(
        float(head_logits(target.model, hidden).softmax(-1).max()), abs=1e-4
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--replace", "rain=snow"], "'rain' is no word of the explanation 'It rains in the town. The town is small.'"),
        (["--replace", "rains"], "--replace rains: expected old=new"),
        (["--replace", "=snow"], "--replace =snow: expected old=new"),
        (["--replace", "rains=snows", "--tokens", "0"], "--tokens 0: must be at least 1"),
        (["--replace", "rains=snows", "--temperature", "-1"], "--temperature -1"),
    ],
)
def test_mistakes(
    changes: list[str], message: str, saved_nla: Path, speaking: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["steer", str(saved_nla), TEXT, *changes]) == 2
    shown = capsys.readouterr().err.strip()
    assert shown.startswith("error:") and message in shown and "\n" not in shown


def test_a_malformed_explanation_cannot_be_edited(saved_nla: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["steer", str(saved_nla), TEXT, "--replace", "a=b", "--max-new-tokens", "4"]) == 2
    assert "malformed" in capsys.readouterr().err
    assert cli.main(["steer", str(saved_nla), " ", "--replace", "a=b"]) == 2
    assert "the text is empty" in capsys.readouterr().err
