"""Streamed FVE: as exact as float64, without float64 on devices that may lack it."""

import math
from typing import Any

import pytest
import torch
from support.fve import fraction_of_variance_explained, fve_normalized_mean
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchmetrics.functional import r2_score

from nla.core.fve import FractionOfVarianceExplained
from nla.core.objectives import normalize


class NoDoubles(TorchDispatchMode):
    """Acts as Apple's GPUs do: no float64 outside the CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and value.dtype == torch.float64 and value.device.type != "cpu":
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it")
        return result


def test_no_float64_touches_a_device_without_it():
    metric = FractionOfVarianceExplained(8)
    assert {state.dtype for state in metric._defaults.values() if isinstance(state, torch.Tensor)} == {torch.float32}
    with FakeTensorMode(), NoDoubles():
        for name in metric._defaults:  # deep copies of fake tensors, as in metric.to(), do not work
            setattr(metric, name, torch.zeros(getattr(metric, name).shape, device="meta"))
        rows = torch.zeros(4, 8, device="meta")
        metric.update(rows, rows, torch.ones(4, dtype=torch.bool, device="meta"))
        result = metric.compute()
        assert {value.device.type for value in (metric.error, metric.total, *result.values())} == {"meta"}
        with pytest.raises(TypeError, match="float64"):
            rows.double()


def test_many_small_batches_with_a_massive_dimension_are_as_exact_as_one_pass():
    torch.manual_seed(0)
    truth = torch.randn(3000, 16)
    truth[:, 3] += 300
    prediction = truth + 0.5 * torch.randn(3000, 16)
    metric = FractionOfVarianceExplained(16)
    for start in range(0, 3000, 3):
        metric.update(prediction[start : start + 3], truth[start : start + 3])
    expected = fraction_of_variance_explained(prediction, truth)
    assert float(metric.compute()["fve"]) == pytest.approx(expected, abs=1e-6)
    assert 0 < expected < 1


def test_ranks_are_summed():
    torch.manual_seed(0)
    truth, prediction = torch.randn(20, 8) + 3, torch.randn(20, 8) + 3
    parts = [FractionOfVarianceExplained(8) for _ in range(3)]
    for part, rows in zip(parts, (slice(0, 3), slice(3, 12), slice(12, 20)), strict=True):
        part.update(prediction[rows], truth[rows])
    whole = FractionOfVarianceExplained(8)
    for name, reduction in whole._reductions.items():
        setattr(whole, name, reduction(torch.stack([getattr(part, name) for part in parts])))  # pyright: ignore
    whole._update_count = 1
    assert float(whole.compute()["fve"]) == pytest.approx(fraction_of_variance_explained(prediction, truth), abs=1e-6)


def test_fve_is_variance_weighted_r2_on_normalized_vectors():
    torch.manual_seed(0)
    activation = torch.randn(50, 8) + 2
    prediction = activation + 0.5 * torch.randn(50, 8)
    scale = math.sqrt(8)
    expected = r2_score(
        normalize(prediction.double(), scale),
        normalize(activation.double(), scale),
        multioutput="variance_weighted",
    )
    assert fraction_of_variance_explained(prediction, activation) == pytest.approx(expected.item(), abs=1e-12)


def test_fve_definitions_differ_as_they_should():
    torch.manual_seed(0)
    activation = torch.randn(200, 8) + 1.5
    constant = normalize(activation, math.sqrt(8)).mean(0).expand(200, 8)
    assert fraction_of_variance_explained(activation, activation) == 1.0
    assert fraction_of_variance_explained(constant, activation) < 0  # a reconstructor cannot output mu itself
    assert fve_normalized_mean(constant, activation) == pytest.approx(0.0, abs=1e-9)
    noisy = activation + torch.randn(200, 8)
    assert fve_normalized_mean(noisy, activation) > fraction_of_variance_explained(noisy, activation)


def test_malformed_rows_count_as_orthogonal():
    torch.manual_seed(0)
    activation = torch.randn(40, 4)
    formed = torch.arange(40) % 2 == 0
    mean = normalize(activation.double(), 2.0)
    spread = (mean - mean.mean(0)).square().mean(-1).sum().item()
    value = fraction_of_variance_explained(activation, activation, formed)
    assert value == pytest.approx(1 - 20 * 2 / spread)
