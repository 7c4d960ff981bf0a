"""FVE by part, by hand: the parts add up to the whole, and each is measured about the mean of all rows."""

import math
from dataclasses import replace

import pytest
import torch
from support.evaluation import SETTINGS, remembering, toy_data

from nla.core.objectives import normalize
from nla.evaluation import evaluate
from nla.evaluation.bootstrap import Resamples
from nla.evaluation.suites.breakdown import partial_fve
from nla.evaluation.tokens_read import tokens_read
from nla.models.pair import NLA
from nla.models.target import Target

DOCUMENT = ["a", "a", "b", "b", "c", "c"]


def test_a_part_is_measured_about_the_mean_of_all_rows() -> None:
    activation = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)) + 1
    error = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    first = torch.tensor([True, True, True, False, False, False])
    nobody = torch.zeros(6, dtype=torch.bool)
    found = partial_fve(
        activation, error, {"first": first, "rest": ~first, "none": nobody}, Resamples(DOCUMENT, 200, 0)
    )
    truth = normalize(activation.double(), math.sqrt(8))
    spread = (truth - truth.mean(0)).square().mean(1)
    assert found["first"]["fve"] == pytest.approx(1 - 0.6 / float(spread[:3].sum()), abs=1e-6)
    assert found["rest"]["fve"] == pytest.approx(1 - 1.5 / float(spread[3:].sum()), abs=1e-6)
    assert found["first"]["n"] == 3 and "none" not in found
    low, high = found["first"]["ci95"]
    assert low <= high
    everything = partial_fve(activation, error, {"all": first | ~first}, Resamples(DOCUMENT, 200, 0))["all"]
    assert everything["fve"] == pytest.approx(1 - 2.1 / float(spread.sum()), abs=1e-6)


def test_ranges_of_tokens_read() -> None:
    ranges = tokens_read(torch.tensor([1, 3, 4, 31, 128, 500]))
    assert {name: rows.nonzero().squeeze(1).tolist() for name, rows in ranges.items()} == {
        "1-3": [0, 1],
        "4-7": [2],
        "16-31": [3],
        "128+": [4, 5],
    }


def test_single_sentences(nla: NLA, target: Target) -> None:
    rows = evaluate(nla, target, toy_data(), SETTINGS).rows
    remembering(nla, rows.activation)
    plain = nla.verbalizer.sample

    def two_sentences(given: torch.Tensor, *arguments: object, **options: object) -> object:
        completions = plain(given, *arguments, **options)  # type: ignore[arg-type]
        return replace(completions, explanation=[f"{text} and more." for text in completions.explanation])

    def reads_the_first(texts: list[str], batch_size: int = 64) -> torch.Tensor:
        mean = rows.activation.mean(0)
        found = [text.split(".")[0].removeprefix("row ") for text in texts]
        return torch.stack([rows.activation[int(k)] if k.isdigit() else mean for k in found])

    nla.verbalizer.sample = two_sentences  # type: ignore[method-assign,assignment]
    nla.reconstruct = reads_the_first  # type: ignore[method-assign,assignment]
    result = evaluate(nla, target, toy_data(), replace(SETTINGS, suites=["breakdown"])).metrics["breakdown"]
    first, second = result["sentences"]
    assert first["n"] == second["n"] == len(rows)
    assert first["alone"]["fve"] == pytest.approx(1, abs=1e-6)
    assert second["without"]["fve"] == pytest.approx(1, abs=1e-6)
    assert first["without"]["fve"] == pytest.approx(second["alone"]["fve"])
    assert second["alone"]["fve"] < 0
    assert sum(part["n"] for part in result["by_norm"].values()) == len(rows)
    assert sum(part["n"] for part in result["by_tokens_read"].values()) == len(rows)
