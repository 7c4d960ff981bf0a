"""What a run could reach at most and where its time goes: operations counted, a plain product timed, a profile."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from timing import Row
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from nla.models.backbone import DTYPES, body

PRODUCTS = ("mm", "addmm")  # with weights; those of activations with each other (attention) are batched
ALL_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product")


def operations(run: Callable[[], Any]) -> dict[str, float]:
    """Of one run: those with weights (2 x parameters x tokens computed, head included), and those of attention."""
    with FlopCounterMode(display=False) as counter:
        run()
    counted = {str(name).removeprefix("aten."): float(n) for name, n in counter.get_flop_counts()["Global"].items()}
    weights = sum(counted.get(name, 0.0) for name in PRODUCTS)
    return {"weights": weights, "attention": sum(counted.values()) - weights}


def product_rate(rows: int, d_model: int, outputs: int, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Operations per second of `[rows d_model] x [d_model outputs]`, the weight laid out as in a linear layer."""
    left = torch.randn(rows, d_model).to(dtype)
    weight = torch.randn(outputs, d_model).to(dtype)
    at_once = 10
    rates = []
    begun = time.perf_counter()
    while len(rates) < 3 or time.perf_counter() - begun < seconds:
        started = time.perf_counter()
        for _ in range(at_once):
            F.linear(left, weight)
        rates.append(2 * rows * d_model * outputs * at_once / (time.perf_counter() - started))
    return statistics.median(rates[1:])


def decode_limit(model: torch.nn.Module, rows: int, dtype: str | None = None) -> float:
    """Operations per second of the model's largest inner product with all rows: what decoding could reach at most."""
    config = body(model).config
    weights = next(model.parameters()).dtype
    return product_rate(rows, config.hidden_size, config.intermediate_size, weights if dtype is None else DTYPES[dtype])


def bound(row: Row, run: Callable[[], Any]) -> Row:
    """The row we would get if matrix products (with weights and in attention) took all of our time."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    self_seconds = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    share = sum(time for name, time in self_seconds.items() if name.startswith(ALL_PRODUCTS)) / sum(
        self_seconds.values()
    )
    ours = row["ours"] * share if row["unit"] == "s" else row["ours"] / share
    return {
        "key": f"bound_{row['key']}",
        "what": f"bound of the line before: products of matrices, {share:.0%} of ours, and nothing else",
        "against": row["against"],
        "unit": row["unit"],
        "ours": ours,
        "other": row["other"],
        "ratio": row["ratio"] / share,
    }


def costliest(run: Callable[[], Any], top: int = 8) -> list[dict[str, Any]]:
    """The operators of one run with the most time of their own, as shares of all."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return [
        {"operator": event.key, "share": round(event.self_cpu_time_total / total, 4), "calls": event.count}
        for event in events[:top]
    ]
