"""Training documents planted in the test split are found by their words, not by their ids."""

from dataclasses import replace

import pytest
from support.evaluation import PLAN, SETTINGS, ToySource, toy_data

from nla.data.source import Document
from nla.evaluation import EvaluationData, evaluate
from nla.evaluation.verdicts import verdicts
from nla.models.pair import NLA
from nla.models.target import Target


class Planted(ToySource):
    """A quarter of its test documents are training documents under other ids."""

    def documents(self, split: str) -> list[Document]:
        documents = list(super().documents(split))
        if split == "test":
            for index, document in enumerate(super().documents("joint")[: len(documents) // 4]):
                documents[index] = replace(documents[index], text=document.text.upper())
        return documents


def leak(nla: NLA, target: Target, data: EvaluationData) -> dict:
    return evaluate(nla, target, data, replace(SETTINGS, suites=["leak"])).metrics


def test_separate_splits_share_nothing(nla: NLA, target: Target) -> None:
    metrics = leak(nla, target, toy_data())
    assert (metrics["leak"]["leaked_share"], metrics["leak"]["flags"]) == (0, [])


def test_planted_documents_turn_a_row_red(nla: NLA, target: Target) -> None:
    data = EvaluationData(Planted(), PLAN)
    metrics = leak(nla, target, data)
    assert metrics["leak"]["leaked_share"] == pytest.approx(1 / 4)
    assert metrics["leak"]["overlap"] >= 1 / 4
    assert any("in the training documents" in verdict.text for verdict in verdicts(metrics) if not verdict.proven)
