"""The console script: what it prints, and that a mistake is one line with status 2."""

import json
import re
from pathlib import Path

import pytest

from nla.commands.cli import main, printable


def test_explain_prints_one_row_per_token(saved_nla: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["explain", str(saved_nla), "Tom walks", "--max-new-tokens", "8"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "malformed" in line or "0." in line]
    assert len(rows) >= 2


def test_explain_takes_positions_and_samples(saved_nla: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["explain", str(saved_nla), "Tom walks to the harbour", "--samples", "2", "--max-new-tokens", "4"]
    assert main([*arguments, "--positions", "last"]) == 0
    assert capsys.readouterr().out.count("malformed") == 2
    assert main([*arguments, "--positions", "0,-1"]) == 0
    assert capsys.readouterr().out.count("malformed") == 4


def test_compare_sets_pairs_side_by_side(saved_nla: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    other = tmp_path / "other"
    other.symlink_to(saved_nla)
    arguments = ["compare", str(saved_nla), str(other), "--text", "Tom walks to", "--max-new-tokens", "4"]
    assert main([*arguments, "--every-word", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["text"] for row in rows] == ["Tom", "Tom walks", "Tom walks to"]
    for row in rows:
        assert list(row["explanations"]) == [str(saved_nla), str(other)]
        assert row["explanations"][str(saved_nla)] == row["explanations"][str(other)]
    assert main(arguments) == 0
    assert "Tom walks to" in capsys.readouterr().out
    assert main(["compare", str(saved_nla), str(saved_nla), "--text", "Tom"]) == 2
    assert "given twice" in capsys.readouterr().err


def test_info(saved_nla: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["info", str(saved_nla)]) == 0
    shown = capsys.readouterr().out
    assert "injection_scale" in shown and "layer" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "/nowhere/at/all", "text"], "/nowhere/at/all"),
        (["explain", "PAIR", "  "], "the text is empty"),
        (["explain", "PAIR", "text", "--positions", "x"], "--positions x: give all, last, or token indices"),
        (["explain", "PAIR", "text", "--positions", "99"], "position 99"),
        (["explain", "PAIR", "text", "--samples", "0"], "--samples 0"),
        (["info", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_mistakes(arguments: list[str], message: str, saved_nla: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(saved_nla) if part == "PAIR" else part for part in arguments]) == 2
    shown = capsys.readouterr().err.strip()
    assert shown.startswith("error:") and message in shown and "\n" not in shown


def test_an_unknown_verb_ends_with_status_2(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        main(["explian"])
    assert "explain" in capsys.readouterr().err


def test_text_cannot_steer_the_terminal():
    assert printable("a\x1b[31mb\u202ec\nd") == "a·[31mb·c⏎d"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "recipe.steps=many"], "recipe.steps='many': .*valid integer"),
        (["pretrain", "architecture.layers=0"], "architecture.layers=0: .*greater than"),
        (["pretrain", "lesson_shares=half"], "lesson_shares='half': .*valid"),
        (["plan", "planning.tflops.bfloat16=fast"], "planning.tflops.bfloat16='fast': .*valid number"),
        (["plan", "stage.joint.data.batch_size=many"], "stage.joint.data.batch_size='many': .*valid integer"),
        (["prepare", "corpus=data", "prepare.max_tokens=many"], "prepare.max_tokens='many': .*valid integer"),
        (["prepare", "corpus=data", "prepare.explain=warm_start"], "prepare.explain='warm_start': .*valid list"),
    ],
)
def test_a_value_of_a_wrong_type_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, *(["out=target"] if arguments[0] == "pretrain" else [])]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and re.search(message, lines[0])
    assert not list(tmp_path.iterdir())
