"""The survey of layers: its figures against plain formulas, and a fit that finds what is there to be found."""

import json
from pathlib import Path

import pytest
from support.models import CORPUS, TEMPLATES, make_model, make_tokenizer

from nla.commands.cli import main
from nla.data.documents import ReadingPlan
from nla.data.teachers import TargetTeacher
from nla.data.text import TextSource
from nla.errors import DataError
from nla.evaluation.layers import LayerSurvey, survey
from nla.models.target import Target

FRACTIONS = {"warm_start": 0.6, "joint": 0.0, "validation": 0.2, "test": 0.2}
TEACHER = TargetTeacher("world", about=2, quoted=4, expected=2, continued=2)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    words = " ".join(CORPUS[:3]).split()
    for number in range(60):
        turned = words[number % len(words) :] + words[: number % len(words)]
        (folder / f"{number:02d}.txt").write_text(" ".join(turned * 2) + f" {number}", encoding="utf-8")
    return folder


def source(texts: Path) -> TextSource:
    return TextSource(str(texts), FRACTIONS, "layers", "text", None, None, 50, 400, None, None)


@pytest.fixture(scope="module")
def result(texts: Path) -> LayerSurvey:
    target = Target(make_model("qwen3"), make_tokenizer(), 0)
    return survey(target, source(texts), TEACHER, TEMPLATES.reconstructor, ReadingPlan(4, 3, 256, 0), 200, bootstrap=50)


def test_every_block_has_all_figures(result: LayerSurvey) -> None:
    assert [block.layer for block in result.blocks] == [0, 1, 2]
    for block in result.blocks:
        assert block.median_norm > 0 and 0 < block.mean_share < 1 and 0 < block.top2_share < 1
        assert 1 <= block.effective_dimension <= 32
        assert set(block.fve) == {"explanation", "next_words", "last_words"}
        for figures in block.fve.values():
            low, high = figures["ci95"]
            assert low <= high and figures["fve"] < 1
    assert result.held_out < result.positions and result.documents >= 2
    assert json.loads(json.dumps(result.to_json()))["proposed"] == result.proposed


def test_the_proposed_block_reads_best_and_is_not_among_the_last(result: LayerSurvey) -> None:
    scores = [block.fve["explanation"]["fve"] for block in result.blocks]
    assert result.proposed == max(range(3), key=scores.__getitem__) and result.proposed < 5 / 6 * 3


def test_shapes_of_the_activations_are_those_of_plain_formulas(texts: Path, result: LayerSurvey) -> None:
    """The norms are those that the target reads at the same positions, by another call."""
    target = Target(make_model("qwen3"), make_tokenizer(), 1)
    documents = [
        document for split in ("warm_start", "validation", "test") for document in source(texts).documents(split)
    ]
    norms = target.read([document.text for document in documents], "all").activation.norm(dim=-1)
    assert float(norms.min()) <= result.blocks[1].median_norm <= float(norms.max())


def test_too_little_text_says_so(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text((texts / "00.txt").read_text(encoding="utf-8"), encoding="utf-8")
    target = Target(make_model("qwen3"), make_tokenizer(), 0)
    with pytest.raises(DataError, match="fewer than two positions"):
        survey(target, source(tmp_path), TEACHER, TEMPLATES.reconstructor, ReadingPlan(4, 3, 256, 0), 40)


def test_the_verb_writes_table_plot_and_json(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "layers",
        "world",
        str(texts),
        "--positions",
        "120",
        "--per-document",
        "4",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(arguments) == 0
    written = json.loads((tmp_path / "out/layers.json").read_text(encoding="utf-8"))
    shown = capsys.readouterr().out
    assert written["model"] == "world" and f"layer.index={written['proposed']}" in shown
    assert (tmp_path / "out/layers.png").read_bytes().startswith(b"\x89PNG")
    assert main(["layers", "world", str(texts), "--positions", "3"]) == 2
    assert "--positions 3: must be at least 20" in capsys.readouterr().err
