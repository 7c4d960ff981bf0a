"""nla report, as a command."""

import json
from pathlib import Path

import pytest
from support.reports import small_report

from nla.commands.cli import main
from nla.commands.report import run_of, texts_of
from nla.report import read_report
from nla.report.records import write_records


def test_a_page_of_a_text(saved_nla: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    (here / "texts.txt").write_text("Tom walks\n\n\nThe fox\njumps\n")
    arguments = ["--file", "texts.txt", "--max-new-tokens", "3", "--samples", "2", "--output", "out/page.html"]
    assert main(["report", str(saved_nla), "A dog", *arguments]) == 0
    report = read_report([here / "out/page.json"])
    assert [text.text for text in report.texts] == ["A dog", "Tom walks", "The fox\njumps"]
    assert all(len(token.samples) == 2 for text in report.texts for token in text.results)
    assert "of 3 texts: out/page.html" in capsys.readouterr().out
    html = (here / "out/page.html").read_text()
    assert main(["report", "--from", "out/page.json", "--output", "out/again.html"]) == 0
    assert (here / "out/again.html").read_text() == html


def test_records_of_a_run_bring_its_figures_and_curves(here: Path):
    run = here / "runs/toy"
    (run / "stages/joint").mkdir(parents=True)
    (run / "evaluation").mkdir()
    (run / "stages/joint/metrics.csv").write_text("step,joint/loss\n1,2\n2,1\n")
    (run / "evaluation/metrics.json").write_text(
        json.dumps({"fve": 0.5, "fve_ci95": [0.4, 0.6], "n": 3, "documents": 2})
    )
    write_records(small_report(), run / "evaluation/tokens.json")
    assert main(["report", "--from", "runs/toy/evaluation/tokens.json"]) == 0
    html = (here / "report.html").read_text()
    assert '"value":0.5,"interval":[0.4,0.6]' in html and '"name":"loss","points":[[1.0,2.0],[2.0,1.0]]' in html
    assert run_of(run / "stages/joint/nla") == run_of(run / "nla") == run.resolve()
    assert run_of(here / "elsewhere/nla") is None


def test_texts_of_a_file(tmp_path: Path):
    path = tmp_path / "texts.txt"
    path.write_text("\none\n two\n  \n\nthree\n")
    assert texts_of(path) == ["one\n two", "three"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a pair and a text"),
        (["PAIR"], "a text is empty"),
        (["PAIR", " "], "a text is empty"),
        (["PAIR", "Tom", "--samples", "1"], "samples=1"),
        (["PAIR", "Tom", "--max-tokens", "0"], "--max-tokens 0: must be at least 1"),
        (["PAIR", "--file", "none.txt"], "none.txt: cannot be read"),
        (["PAIR", "--from", "a.json"], "give either it, or a pair"),
        (["--from", "none.json"], "none.json: cannot be read"),
        (["/nowhere/at/all", "Tom"], "/nowhere/at/all"),
    ],
)
def test_mistakes(arguments: list[str], message: str, saved_nla: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["report", *(str(saved_nla) if part == "PAIR" else part for part in arguments)]) == 2
    shown = capsys.readouterr().err.strip()
    assert shown.startswith("error:") and message in shown and "\n" not in shown
    assert not (here / "report.html").exists()
