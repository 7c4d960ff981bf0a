"""evaluate.py's page: a few test texts token by token, with the figures of the evaluation."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.evaluation import SETTINGS, ToySource, remembering, toy_data

from nla.core.fve import normalized_activations
from nla.evaluation import run
from nla.evaluation.page import page_documents, read_texts
from nla.evaluation.subject import read_subject
from nla.models.pair import NLA
from nla.models.target import Target
from nla.report import read_report


def test_the_page_stands_beside_the_metrics(nla: NLA, target: Target, tmp_path: Path) -> None:
    rows = read_subject(nla, target, toy_data(size=4), replace(SETTINGS, samples=0, max_new_tokens=1)).rows
    remembering(nla, rows.activation)
    result = run(nla, target, toy_data(size=4), tmp_path, settings=replace(SETTINGS, report_texts=2), command="test")
    report = read_report([tmp_path / "tokens.json"])
    assert [text.name for text in report.texts] == [item.id for item in page_documents(result.subject, 2)]
    texts = {item.id: item.text for item in ToySource(size=4).documents("test")}
    for text in report.texts:
        assert texts[text.name].startswith(text.text) and 2 <= len(text.results) <= 64
        assert text.mean == "given"
    # an evaluated position: the pair remembers it, so its error is 0, against that of the evaluation's mean
    name = report.texts[0].name
    row = rows.document_id.index(name)
    token = next(token for token in report.texts[0].results if token.position == int(rows.position[row]))
    truth = normalized_activations(rows.activation)
    assert token.mse == pytest.approx(0, abs=1e-5)
    assert token.mse_of_mean == pytest.approx(float((truth[row] - truth.mean(0)).square().mean()), rel=1e-3)
    html = (tmp_path / "report.html").read_text()
    fve = json.loads((tmp_path / "metrics.json").read_text())["fve"]
    assert f'"value":{fve}' in html and "report" in result.metrics["seconds"]


def test_no_page_where_none_is_asked_for(nla: NLA, target: Target, tmp_path: Path) -> None:
    result = run(nla, target, toy_data(size=3), tmp_path, settings=replace(SETTINGS, samples=0), command="test")
    assert not list(tmp_path.glob("*.html")) and not (tmp_path / "tokens.json").exists()
    assert read_texts(result.subject, "pair", 0) is None


def test_documents_are_chosen_once_each(nla: NLA, target: Target) -> None:
    subject = read_subject(nla, target, toy_data(size=5), replace(SETTINGS, documents=3, samples=0, max_new_tokens=1))
    chosen = page_documents(subject, 9)
    assert len(chosen) == len({item.root for item in chosen}) == 3
    assert {item.id for item in chosen} == set(subject.rows.document_id)
    assert page_documents(subject, 2) == chosen[:2]
