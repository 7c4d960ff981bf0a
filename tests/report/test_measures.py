"""Errors, the nearest wrong explanation, agreement and sentences, by hand in two or three dimensions."""

import math

import pytest
import torch

from nla.core.objectives import normalize
from nla.core.summary import ActivationSummary, remarks
from nla.models.explanations import sentence_spans
from nla.report.measures import agreement, nearest_wrong, score, training_mean

EAST, NORTH = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 5.0])
DIAGONAL = torch.tensor([1.0, 1.0])


def test_the_error_is_twice_one_minus_the_cosine_and_2_for_no_text():
    error, cosines = score(torch.stack([EAST, NORTH, DIAGONAL, EAST]), EAST.unsqueeze(0), ["a", "b", "c", None])
    assert error.tolist() == pytest.approx([0, 2, 2 * (1 - math.sqrt(0.5)), 2], abs=1e-6)
    assert cosines.tolist() == pytest.approx([1, 0, math.sqrt(0.5), 0], abs=1e-6)


def test_the_nearest_wrong_explanation_is_of_another_row_and_another_text():
    predictions = torch.stack([EAST, NORTH, DIAGONAL, EAST])
    activations = torch.stack([EAST, NORTH, DIAGONAL, EAST])
    found = nearest_wrong(predictions, activations, ["east", "north", "diagonal", "east"])
    near = 2 * (1 - math.sqrt(0.5))
    # row 3 says the same as row 0, so it is not wrong for it
    assert [row and row[0] for row in found] == [2, 2, 0, 2]
    assert [row and row[1] for row in found] == pytest.approx([near] * 4, abs=1e-5)
    assert nearest_wrong(predictions[:2], activations[:2], ["east", None]) == [None, (0, pytest.approx(2, abs=1e-5))]


def test_many_rows_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(0)
    predictions, activations = torch.randn(2, 11, 4, generator=generator).unbind(0)
    texts: list[str | None] = [f"text {index % 4}" for index in range(11)]
    whole = nearest_wrong(predictions, activations, texts)
    monkeypatch.setattr("nla.report.measures.ROWS_AT_ONCE", 3)
    parts = nearest_wrong(predictions, activations, texts)
    assert [row and row[0] for row in parts] == [row and row[0] for row in whole]


def test_agreement_is_the_mean_cosine_about_the_mean():
    mean = torch.zeros(2)
    texts = ["a", "b", "c"]
    assert agreement(torch.stack([EAST, EAST, EAST]), texts, mean) == pytest.approx(1)
    # pairs: east-east 1, east-west -1, east-west -1
    assert agreement(torch.stack([EAST, EAST, -EAST]), texts, mean) == pytest.approx(-1 / 3)
    assert agreement(torch.stack([EAST, NORTH, EAST]), ["a", "b", None], mean) == pytest.approx(0, abs=1e-6)
    # two vectors that differ from the mean in opposite directions disagree, however alike they are
    apart = torch.tensor([[1.0, 0.1], [1.0, -0.1]])
    centre = torch.tensor([math.sqrt(2), 0.0])
    assert agreement(apart, texts[:2], centre) < -0.9 < 0.9 < agreement(apart, texts[:2], mean)


def test_the_training_mean_is_as_long_as_the_median_cosine():
    activations = torch.tensor([[3.0, 4.0], [3.0, -4.0], [5.0, 0.0]])
    summary = ActivationSummary.of(activations)  # cosines to (1, 0): 0.6, 0.6, 1
    assert training_mean(summary).tolist() == pytest.approx([0.6 * math.sqrt(2), 0], abs=1e-5)
    plain = normalize(activations, math.sqrt(2)).mean(0)
    assert plain.tolist() == pytest.approx([2.2 / 3 * math.sqrt(2), 0], abs=1e-5)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two!  Three", ["One.", "Two!", "Three"]),
        ("One;\n\ntwo\n", ["One;", "two"]),
        ("3.5 is one sentence", ["3.5 is one sentence"]),
        ("", []),
    ],
)
def test_sentences_are_spans_of_the_text(text: str, sentences: list[str]):
    assert [text[start:end] for start, end in sentence_spans(text)] == sentences


def test_each_unusual_activation_has_its_own_remark():
    summary = ActivationSummary.of(torch.tensor([[3.0, 4.0], [3.0, -4.0], [5.0, 0.0]]))
    usual, far, turned = remarks(torch.tensor([[4.0, 3.0], [300.0, 0.0], [-5.0, 0.0]]), summary, 5.0)
    assert usual is None
    assert far == "norm 300, where training activations had 5 to 5"
    assert turned is not None and turned.startswith("cosine to the training mean -1, where")
    assert remarks(torch.ones(2, 3), None, None) == [None, None]
