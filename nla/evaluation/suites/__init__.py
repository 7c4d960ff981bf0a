"""Suites: each a plain function of a `Subject`, with a table for a person beside it.

May import the modules of `nla.evaluation` that read, explain and score; not those that write. Public: the names below.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType

from nla.errors import ConfigError
from nla.evaluation.subject import Subject
from nla.evaluation.suites import (
    awareness,
    breakdown,
    causal,
    claims,
    confidence,
    judged,
    leak,
    match,
    next_words,
    planning,
    readability,
    rivals,
    robustness,
    steering,
    text_rivals,
)

__all__ = ["SUITES", "Suite", "chosen"]


@dataclass(frozen=True, slots=True)
class Suite:
    """`run` gives the entry `name` of metrics.json, None where the data has no answer; `table` prints it."""

    name: str
    run: Callable[[Subject], dict[str, Any] | None]
    table: Callable[[dict[str, Any]], RenderableType]


SUITES = (
    Suite("position_match", match.position_match, match.table),
    Suite("claims", claims.claims, claims.table),
    Suite("leak", leak.leak, leak.table),
    Suite("breakdown", breakdown.breakdown, breakdown.table),
    Suite("robustness", robustness.robustness, robustness.table),
    Suite("confidence", confidence.confidence, confidence.table),
    Suite("readability", readability.readability, readability.table),
    Suite("causal", causal.causal, causal.table),
    Suite("next_words", next_words.next_words, next_words.table),
    Suite("rivals", rivals.rivals, rivals.table),
    Suite("text_rivals", text_rivals.text_rivals, text_rivals.table),
    Suite("judged", judged.judged, judged.table),
    Suite("steering", steering.steering, steering.table),
    Suite("planning", planning.planning, planning.table),
    Suite("awareness", awareness.awareness, awareness.table),
)


def chosen(names: Sequence[str]) -> list[Suite]:
    """The suites of these names, in the order of `SUITES`. Raises ConfigError for an unknown one."""
    unknown = [name for name in names if name not in {suite.name for suite in SUITES}]
    if unknown:
        raise ConfigError(
            f"evaluation.suites: {unknown[0]!r} is no suite; choose from {', '.join(suite.name for suite in SUITES)}"
        )
    return [suite for suite in SUITES if suite.name in names]
