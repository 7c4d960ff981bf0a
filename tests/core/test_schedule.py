"""Schedules by hand: the learning rate of training and pretraining, and the KL coefficient."""

import math

import pytest

from nla.core.schedule import ScheduleKind, half_cosine, interpolated, learning_rate_share


def test_the_learning_rate_warms_up_and_falls_to_its_last_fraction() -> None:
    shares = [learning_rate_share(n, steps=1000, warmup_steps=100, final_fraction=0.05) for n in (0, 100, 1000, 1001)]
    falling = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * 0.1))
    assert shares == pytest.approx([0.01, falling, 0.05, 0.05])


def test_a_final_fraction_of_one_keeps_the_learning_rate() -> None:
    assert [learning_rate_share(n, steps=4, warmup_steps=2, final_fraction=1.0) for n in range(5)] == [0.5, 1, 1, 1, 1]
    assert learning_rate_share(0, steps=0, warmup_steps=0, final_fraction=0.1) == 1.0


def test_half_cosine_stays_at_zero_after_its_end() -> None:
    assert [half_cosine(progress) for progress in (0.0, 0.5, 1.0, 3.0)] == pytest.approx([1.0, 0.5, 0.0, 0.0])


@pytest.mark.parametrize(("kind", "middle"), [("constant", 2.0), ("linear", 3.0), ("cosine", 2.5857864)])
def test_interpolation_by_hand(kind: ScheduleKind, middle: float) -> None:
    end = 2.0 if kind == "constant" else 6.0
    values = [interpolated(2.0, 6.0, progress, kind) for progress in (-1, 0, 0.25, 1, 2)]
    assert values == pytest.approx([2.0, 2.0, middle, end, end])
