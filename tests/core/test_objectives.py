"""The maths compared with numbers derived by hand, torchmetrics and finite differences."""

import math
from collections.abc import Callable

import pytest
import torch
from jaxtyping import TypeCheckError

from nla.core import objectives as o
from nla.errors import ConfigError


def test_normalize_to_a_norm_with_finite_gradients_at_zero():
    vector = torch.tensor([[3.0, 4.0], [1e-30, 0.0], [0.0, 0.0]], requires_grad=True)
    result = o.normalize(vector, 10.0)
    assert torch.allclose(result[0], torch.tensor([6.0, 8.0]))
    result.sum().backward()
    assert vector.grad is not None
    assert vector.grad.isfinite().all()


def test_normalize_computes_in_fp32_and_none_keeps_the_vector():
    huge = torch.full((1, 4), 1e4, dtype=torch.float16)
    assert torch.allclose(o.normalize(huge, 2.0), torch.ones(1, 4))
    assert torch.equal(o.normalize(huge, None), huge.float())


@pytest.mark.parametrize("value", ["8e4", "sqrt", -1, 0, math.nan, math.inf, True])
def test_resolve_scale_refuses(value: object):
    with pytest.raises(ConfigError, match="positive number"):
        o.resolve_scale(value, 16)  # pyright: ignore[reportArgumentType]


def test_resolve_scale():
    assert o.resolve_scale("sqrt_d_model", 16) == 4.0
    assert o.resolve_scale(150, 16) == 150.0
    assert o.resolve_scale(None, 16) is None


def test_error_is_twice_one_minus_cosine():
    activation = torch.tensor([[1.0, 0.0]] * 4)
    prediction = torch.tensor([[5.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [1.0, 1.0]])
    error = o.reconstruction_error(prediction, activation, math.sqrt(2))
    expected = torch.tensor([0.0, 2.0, 4.0, 2 - math.sqrt(2)])
    assert torch.allclose(error, expected, atol=1e-6)
    assert torch.allclose(2 * (1 - o.cosine(prediction, activation)), error, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 3.0, None])
def test_orthogonal_error_at_any_scale(scale: float | None):
    activation, prediction = torch.tensor([[3.0, 0.0, 0.0, 0.0]]), torch.tensor([[0.0, 3.0, 0.0, 0.0]])
    expected = 2 * 9 / 4 if scale is None else 2 * scale**2 / 4
    assert o.orthogonal_error(activation, scale).item() == pytest.approx(expected)
    assert o.reconstruction_error(prediction, activation, scale).item() == pytest.approx(expected)


def test_a_whitened_error_is_one_minus_r_squared_of_each_dimension():
    """Predicting the mean costs the same with and without weights; each dimension then has the same share."""
    generator = torch.Generator().manual_seed(0)
    activation = torch.randn(4000, 6, generator=generator) * torch.tensor([9.0, 3.0, 1.0, 1.0, 0.5, 0.4]) + 2
    weight = o.whitening(activation, None)
    mean = activation.mean(0).expand_as(activation)
    plain, whitened = (o.reconstruction_error(mean, activation, None, w).mean() for w in (None, weight))
    assert whitened == pytest.approx(float(plain), rel=1e-4)
    for dimension in range(6):
        better = mean.clone()
        better[:, dimension] = activation[:, dimension]
        gained = 1 - o.reconstruction_error(better, activation, None, weight).mean() / whitened
        assert gained == pytest.approx(1 / 6, abs=0.01)
    flat = activation * torch.tensor([1.0, 1, 1, 1, 1, 0])
    assert o.whitening(flat, None)[5] == pytest.approx(1000)


def test_a_weighted_orthogonal_error_is_the_plain_one_where_all_weights_are_one():
    activation = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(8)
    for scale in (None, 8**0.5):
        assert torch.allclose(o.orthogonal_error(activation, scale, ones), o.orthogonal_error(activation, scale))


def test_reward_of_malformed_is_the_orthogonal_one():
    error = torch.tensor([0.5, math.nan, 0.0])
    formed = torch.tensor([True, False, True])
    orthogonal = torch.full((3,), 2.0)
    assert torch.equal(o.reward(error, formed, orthogonal), torch.tensor([-0.5, -2.0, 0.0]))
    logs = o.reward(error, formed, orthogonal, "neg_log_error")
    assert torch.allclose(logs, torch.tensor([-math.log(0.5), -math.log(2), -math.log(1e-8)]))


@pytest.mark.parametrize(
    "call",
    [
        lambda f: o.reward(torch.zeros(2), torch.ones(2, dtype=torch.bool), torch.zeros(2), f),
        lambda f: o.group_advantages(torch.zeros(2), 2, f),
        lambda f: o.aggregate(torch.zeros(2, 3), MASK, f, 1),
        lambda f: o.kl_to_reference(torch.zeros(2, 3), torch.zeros(2, 3), MASK, f),
    ],
)
def test_unknown_kinds_are_refused(call: Callable):
    with pytest.raises((ConfigError, TypeCheckError), match="other"):
        call("other")


def test_advantages_by_hand():
    rewards = torch.tensor([1.0, 2.0, 3.0, 10.0, 10.0, 40.0])
    assert torch.allclose(o.group_advantages(rewards, 3, "centered"), torch.tensor([-1.0, 0, 1, -10, -10, 20]))
    left_out = torch.tensor([1 - 2.5, 2 - 2.0, 3 - 1.5, 10 - 25.0, 10 - 25.0, 40 - 10.0])
    assert torch.allclose(o.group_advantages(rewards, 3, "leave_one_out"), left_out)
    standard = o.group_advantages(rewards, 3, "standardized", eps=0.0)
    assert torch.allclose(standard[:3], torch.tensor([-1.0, 0.0, 1.0]))


@pytest.mark.parametrize("kind", ["standardized", "centered", "leave_one_out"])
def test_equal_rewards_give_zero_and_nan_stays_alone(kind: o.AdvantageKind):
    rewards = torch.tensor([-2.0, -2.0, -2.0, 1.0, math.nan, 3.0, 0.1, 0.1, 0.1, math.nan, math.nan, math.nan])
    advantage = o.group_advantages(rewards, 3, kind)
    assert advantage.isfinite().all()
    assert torch.equal(advantage[:3], torch.zeros(3))
    assert torch.equal(advantage[6:], torch.zeros(6))
    assert advantage[4] == 0
    assert advantage[3] == -advantage[5] < 0


@pytest.mark.parametrize("kind", ["standardized", "centered", "leave_one_out"])
def test_group_of_one_learns_nothing(kind: o.AdvantageKind):
    assert torch.equal(o.group_advantages(torch.tensor([1.0, 5.0]), 1, kind), torch.zeros(2))


def test_group_must_divide():
    with pytest.raises(ConfigError, match="does not divide"):
        o.group_advantages(torch.zeros(5), 2)


MASK = torch.tensor([[True, True, False], [True, False, False]])


@pytest.mark.parametrize(
    ("length", "denominator", "expected"), [("sample_mean", 2, 3.25), ("token_mean", 3, 8 / 3), ("token_mean", 10, 0.8)]
)
def test_aggregate_by_hand(length: o.LengthKind, denominator: int, expected: float):
    values = torch.tensor([[1.0, 2.0, math.nan], [5.0, 9.0, 9.0]])
    assert o.aggregate(values, MASK, length, denominator).item() == pytest.approx(expected)


@pytest.mark.parametrize("length", ["sample_mean", "token_mean"])
def test_micro_batches_add_up(length: o.LengthKind):
    values = torch.randn(2, 3)
    denominator = {"sample_mean": 2, "token_mean": 3}[length]
    whole = o.aggregate(values, MASK, length, denominator)
    parts = sum(o.aggregate(values[i : i + 1], MASK[i : i + 1], length, denominator) for i in range(2))
    assert torch.allclose(whole, torch.as_tensor(parts))


def test_policy_gradient_is_reinforce_when_on_policy():
    log_probs = torch.tensor([[-1.0, -2.0, -9.0], [-0.5, 0.0, 0.0]], requires_grad=True)
    loss = o.policy_gradient_loss(log_probs, torch.tensor([2.0, -1.0]), MASK, "sample_mean", 2)
    loss.backward()
    # d/dlogp of -A * ratio / tokens / samples
    expected = torch.tensor([[-2 / 2 / 2, -2 / 2 / 2, 0.0], [1 / 2, 0.0, 0.0]])
    assert log_probs.grad is not None
    assert torch.allclose(log_probs.grad, expected)
    assert loss.item() == pytest.approx((-2.0 + 1.0) / 2)


@pytest.mark.parametrize(("kind", "expected"), [("k3", math.exp(0.5) - 1.5), ("k2", 0.125)])
def test_kl_by_hand(kind: o.KLKind, expected: float):
    log_probs, reference = torch.full((1, 2), -1.5), torch.full((1, 2), -1.0)
    mask = torch.tensor([[True, False]])
    assert o.kl_to_reference(log_probs, reference, mask, kind).item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["k3", "k2"])
def test_kl_is_zero_at_equality_and_bounded_when_far(kind: o.KLKind):
    log_probs = torch.randn(2, 3).requires_grad_()
    assert o.kl_to_reference(log_probs, log_probs.detach().clone(), MASK, kind).item() == 0.0
    far = o.kl_to_reference(torch.full((2, 3), -1e4), torch.zeros(2, 3), MASK, kind, denominator=2)
    assert far.item() <= math.exp(12)


def test_kl_gradient_pulls_towards_the_reference():
    log_probs = torch.full((1, 1), -2.0, requires_grad=True)
    o.kl_to_reference(log_probs, torch.full((1, 1), -1.0), torch.ones(1, 1, dtype=torch.bool)).backward()
    assert log_probs.grad is not None
    assert log_probs.grad.item() == pytest.approx(1 - math.e)


def test_sequence_kl_sums_over_real_tokens():
    assert o.sequence_kl(torch.ones(2, 3), torch.zeros(2, 3), MASK).tolist() == [2.0, 1.0]


def test_kl_estimators_agree_with_the_exact_divergence():
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.4, 0.4, 0.2])
    exact = (policy * (policy / reference).log()).sum().item()
    drawn = torch.multinomial(policy, 200_000, replacement=True, generator=generator)
    log_probs, anchor = policy.log()[drawn].unsqueeze(1), reference.log()[drawn].unsqueeze(1)
    mask = torch.ones_like(log_probs, dtype=torch.bool)
    assert o.kl_to_reference(log_probs, anchor, mask, "k3", denominator=len(drawn)).item() == pytest.approx(
        exact, rel=0.05
    )
    assert o.sequence_kl(log_probs, anchor, mask).mean().item() == pytest.approx(exact, rel=0.1)


def test_error_gradient_against_finite_differences():
    torch.manual_seed(0)
    prediction = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    activation = torch.randn(2, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: o.reconstruction_error(p, activation, 2.0), prediction)
