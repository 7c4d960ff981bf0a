"""Schedules: how learning rates and the KL coefficient change over the steps of a run."""

import math
from typing import Literal

ScheduleKind = Literal["constant", "linear", "cosine"]


def half_cosine(progress: float) -> float:
    """Falls from 1 to 0 as `progress` goes from 0 to 1: `(1 + cos(pi progress)) / 2`, then stays at 0."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def learning_rate_share(step: int, *, steps: int, warmup_steps: int, final_fraction: float) -> float:
    """Share of the full learning rate at `step`: a linear warm-up, then a half cosine down to `final_fraction`.

    The rate at `step` belongs to update number `step + 1`, so the first one is never 0. `final_fraction=1` keeps the
    rate constant after the warm-up.
    """
    warm = min(1.0, (step + 1) / max(1, warmup_steps))
    return warm * (final_fraction + (1 - final_fraction) * half_cosine(step / max(1, steps)))


def interpolated(start: float, end: float, progress: float, kind: ScheduleKind) -> float:
    """From `start` (progress 0) to `end` (progress 1), clamped at both; `constant` stays at `start`."""
    progress = min(1.0, max(0.0, progress))
    if kind == "constant":
        return start
    return start + (end - start) * (progress if kind == "linear" else 1 - half_cosine(progress))
