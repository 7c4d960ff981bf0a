"""Intervals against a loop over resamples and against simulated truth; claims counted by hand."""

import math

import numpy as np
import pytest
import torch
from support.evaluation import ToySource
from support.fve import fraction_of_variance_explained

from nla.evaluation.activations import EvaluatedRows
from nla.evaluation.bootstrap import Resamples, Variance
from nla.evaluation.explanations import score
from nla.evaluation.suites.claims import FullDescription, change, judge, summarize


def clustered(rng: np.random.Generator, documents: int, each: int = 3, d_model: int = 12) -> tuple[torch.Tensor, ...]:
    """Activations that share a part within a document, and predictions of some quality."""
    shared = rng.normal(size=(documents, 1, d_model))
    activation = 1.0 + shared + rng.normal(size=(documents, each, d_model))
    prediction = activation + 0.7 * rng.normal(size=activation.shape) + 0.3 * rng.normal(size=(documents, 1, d_model))
    flat = (torch.from_numpy(part.reshape(-1, d_model)) for part in (activation, prediction))
    return tuple(flat)


def names(documents: int, each: int = 3) -> list[str]:
    return [f"d{index}" for index in range(documents) for _ in range(each)]


def test_resamples_equal_a_loop() -> None:
    activation, prediction = clustered(np.random.default_rng(0), 6)
    resamples = Resamples(names(6), 40, seed=5)
    found = Variance(activation, resamples)._fve(score(prediction, activation).error)[1]
    weights = np.random.default_rng(5).multinomial(6, np.full(6, 1 / 6), 40)
    for weight, value in zip(weights, found.tolist(), strict=True):
        chosen = [3 * doc + k for doc, times in enumerate(weight) for _ in range(times) for k in range(3)]
        assert value == pytest.approx(fraction_of_variance_explained(prediction[chosen], activation[chosen]), abs=1e-10)


def test_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(1)
    activation, prediction = clustered(rng, 40_000)
    truth = fraction_of_variance_explained(prediction, activation)
    hits = 0
    for trial in range(80):
        activation, prediction = clustered(rng, 120)
        interval = Variance(activation, Resamples(names(120), 200, trial)).fve(score(prediction, activation).error)
        low, high = interval["ci95"]  # type: ignore[misc]
        assert low < interval["fve"] < high
        hits += low <= truth <= high
    assert 0.85 < hits / 80 <= 1


def test_rows_of_one_document_are_not_independent() -> None:
    activation, prediction = clustered(np.random.default_rng(2), 60, each=1)
    activation, prediction = (part.repeat_interleave(8, 0) for part in (activation, prediction))
    error = score(prediction, activation).error

    def width(document: list[str]) -> float:
        low, high = Variance(activation, Resamples(document, 400, 0)).fve(error)["ci95"]  # type: ignore[misc]
        return high - low

    assert width(names(60, 8)) > 2 * width([str(index) for index in range(480)])


def test_constants_by_hand() -> None:
    activation, _ = clustered(np.random.default_rng(3), 20)
    variance = Variance(activation, Resamples(names(20), 30, 0))
    unit = activation / activation.norm(dim=1, keepdim=True) * math.sqrt(12)
    constant = unit.mean(0).expand_as(activation)
    by_hand = fraction_of_variance_explained(constant, activation)
    assert variance.constant_direction()["fve"] == pytest.approx(by_hand, abs=1e-10)
    assert by_hand < 0
    assert variance.mean() == {"fve": 0.0, "ci95": [0.0, 0.0]}


def test_paired_differences_are_narrower_than_apart() -> None:
    activation, prediction = clustered(np.random.default_rng(4), 50)
    variance = Variance(activation, Resamples(names(50), 200, 0))
    good = score(prediction, activation).error
    worse = (good * 1.2).clamp_max(4)
    above = variance.above(good, worse)
    low, high = above["ci95"]  # type: ignore[misc]
    assert above["fve"] == pytest.approx(variance.fve(good)["fve"] - variance.fve(worse)["fve"])  # type: ignore[operator]
    assert 0 < low < high


def toy_rows() -> EvaluatedRows:
    """Two documents, two rows each; `first` is about a known pair of facts, its animal revealed in the second row."""
    colour, animal = ToySource()._facts("first")
    other_colour, _ = ToySource()._facts("second")
    texts = [
        f"a {colour} day",
        f"a {colour} day with a {animal}",
        f"a {other_colour} day",
        f"a {other_colour} day, long",
    ]
    return EvaluatedRows(
        activation=torch.ones(4, 3),
        document=["first"] * 2 + ["second"] * 2,
        document_id=["first"] * 2 + ["second"] * 2,
        position=torch.arange(4),
        read=torch.arange(4) + 1,
        tokens=[[0]] * 4,
        following=torch.full((4,), -1),
        text=texts,
        tail=texts,
    )


def test_claims_counted_by_hand() -> None:
    rows, source = toy_rows(), ToySource()
    colour, animal = source._facts("first")
    other_colour, _ = source._facts("second")
    texts = [
        f"colour {colour}. animal {animal}.",  # the animal is right but not yet revealed: false
        f"colour {colour}. colour {colour}. animal {animal}.",  # repeated: two claims, one fact
        None,
        f"colour {other_colour}. nonsense here.",
    ]
    found = summarize(judge(source, rows, texts), Resamples(rows.document, 100, 0))
    assert found["n"] == 7
    assert found["true_share"] == 5 / 7
    assert found["recall"] == 4 / 5  # facts known: 1, 2, 1, 1; stated: 1, 2, 0, 1
    assert found["kinds_per_text"] == (2 + 2 + 0 + 1) / 4
    assert found["true_kinds_per_text"] == (1 + 2 + 0 + 1) / 4
    by_kind = found["by_kind"]
    assert by_kind["animal"]["unrevealed_share"] == 1 / 2 and by_kind["colour"]["unrevealed_share"] == 0
    assert (by_kind["colour"]["n"], by_kind["colour"]["true_share"], by_kind["colour"]["recall"]) == (4, 1.0, 3 / 4)
    assert (by_kind["animal"]["n"], by_kind["animal"]["true_share"], by_kind["animal"]["recall"]) == (2, 0.5, 1.0)
    assert (by_kind["unparsed"]["n"], by_kind["unparsed"]["true_share"], by_kind["unparsed"]["recall"]) == (
        1,
        0.0,
        None,
    )
    # a resample is first twice (4/5), one of each (5/7), or second twice (1/2)
    assert found["true_share_ci95"] == pytest.approx([1 / 2, 4 / 5])


def test_change_is_after_minus_before() -> None:
    rows, source = toy_rows(), ToySource()
    colour, _ = source._facts("first")
    wrong = next(value for value in ("red", "blue", "green") if value != colour)
    resamples = Resamples(rows.document, 100, 0)
    right = judge(source, rows, [f"colour {colour}."] * 2 + [None] * 2)
    half = judge(source, rows, [f"colour {colour}.", f"colour {wrong}."] + [None] * 2)
    found = change(right, half, resamples)
    assert found["true_share"] == 0.5
    assert found["by_kind"]["colour"]["true_share"] == 0.5
    assert found["true_share_ci95"] == [0.5, 0.5]


def test_a_source_may_know_nothing() -> None:
    class Silent(ToySource):
        def facts(self, document_id: str, text: str) -> list[tuple[str, str]]:
            return []

    rows = toy_rows()
    found = summarize(judge(Silent(), rows, [None] * 4), Resamples(rows.document, 10, 0))
    assert found["n"] == 0
    assert found["true_share"] is None
    assert found["kinds_per_text"] == 0
    assert isinstance(ToySource(), FullDescription)
