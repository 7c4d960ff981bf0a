"""Position match, by hand: which activation of several is the nearest."""

import pytest
import torch

from nla.evaluation.bootstrap import Resamples
from nla.evaluation.suites.match import matched

DOCUMENT = ["a", "a", "a", "b", "b", "c"]
FORMED = torch.ones(6, dtype=torch.bool)


def match(prediction: torch.Tensor, activation: torch.Tensor, formed: torch.Tensor = FORMED) -> dict:
    return matched(prediction, activation, DOCUMENT, formed, Resamples(DOCUMENT, 50, 0))


def test_a_perfect_reconstruction_matches_every_position() -> None:
    activation = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    found = match(3 * activation, activation)
    same, others = found["same_document"], found["other_documents"]
    assert (same["rank1"], same["n"], same["candidates"]) == (1.0, 5, pytest.approx((3 * 3 + 2 * 2) / 5))
    assert same["chance"] == pytest.approx((3 / 3 + 2 / 2) / 5)
    assert (others["rank1"], others["n"]) == (1.0, 6) and same["ci95"] == others["ci95"] == [1.0, 1.0]
    assert others["chance"] == pytest.approx((3 / 4 + 2 / 5 + 1 / 6) / 6)


def test_what_all_positions_of_a_document_share_matches_one_of_them() -> None:
    basis = torch.eye(6)
    activation = basis[[0, 0, 0, 1, 1, 2]] + 0.3 * basis[[3, 4, 5, 3, 4, 5]]
    topic = basis[[0, 0, 0, 1, 1, 2]] + 0.01 * basis[[4, 4, 4, 4, 4, 4]]  # the same text at every position
    found = match(topic, activation)
    assert found["same_document"]["rank1"] == pytest.approx(2 / 5)
    assert found["other_documents"]["rank1"] == 1.0


def test_a_malformed_explanation_matches_nothing() -> None:
    activation = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    formed = torch.tensor([True, False, True, True, True, False])
    found = match(activation, activation, formed)
    assert found["same_document"]["rank1"] == pytest.approx(4 / 5)
    assert found["other_documents"]["rank1"] == pytest.approx(4 / 6)


def test_documents_of_one_row_are_not_asked_about() -> None:
    found = matched(torch.eye(2), torch.eye(2), ["a", "b"], FORMED[:2], Resamples(["a", "b"], 5, 0))
    assert found["same_document"] == {"rank1": None, "ci95": None, "chance": None, "candidates": None, "n": 0}
