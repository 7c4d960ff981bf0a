"""The gate before joint training: it opens for a reconstructor that reads, and stops the others with what to do."""

import logging
from collections.abc import Iterator

import pytest
import torch
from support.stages import batch, fit, joint, same, weights

from nla import NLA, Target
from nla.core.records import ActivationBatch
from nla.errors import ConfigError, TrainingError
from nla.training.gate import Discrimination, Errors


def errors(own: float, other: float, empty: float, rows: int = 32, noise: float = 0.1) -> Errors:
    generator = torch.Generator().manual_seed(0)
    draw = lambda mean: mean + noise * torch.randn(rows, generator=generator)  # noqa: E731
    return {"own": draw(own), "another row's": draw(other), "empty": draw(empty)}


def held_out(rows: int | None = None) -> Iterator[ActivationBatch]:
    return iter([batch(seed=1), batch(seed=2)])


def identity(value: torch.Tensor) -> torch.Tensor:
    return value


def test_a_clear_difference_opens_the_gate() -> None:
    figures = Discrimination.of([errors(0.3, 0.6, 0.9), errors(0.3, 0.6, 0.9)], identity)
    figures.check()
    assert figures.rows == 64 and figures.error["own"] == pytest.approx(0.3, abs=0.05)
    both = errors(0.3, 0.6, 0.9)
    once = Discrimination.of([both], identity)
    difference = (both["empty"] - both["own"]).double()
    expected = difference.mean() / (difference.std(correction=0) / 32**0.5)
    assert once.margin["empty"] == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(("other", "empty", "named"), [(0.3, 0.9, "another row's"), (0.9, 0.3, "empty")])
def test_a_text_that_reads_as_well_closes_it(other: float, empty: float, named: str) -> None:
    with pytest.raises(TrainingError, match=f"reads {named} text as well .*reading_gap above 0.*gate_rows=0"):
        Discrimination.of([errors(0.3, other, empty)], identity).check()


def test_ranks_add_up() -> None:
    one, other = errors(0.3, 0.6, 0.9), errors(0.4, 0.5, 0.7, rows=16)
    whole = Discrimination.of([one, other], identity)
    shares = [None, None]

    def note(index: int):
        def keep(value: torch.Tensor) -> torch.Tensor:
            shares[index] = value  # pyright: ignore[reportArgumentType, reportCallIssue]
            return value

        return keep

    Discrimination.of([one], note(0))
    Discrimination.of([other], note(1))
    total = shares[0] + shares[1]  # pyright: ignore[reportOptionalOperand]
    both = Discrimination.of([one], lambda _: total)
    assert both.margin == pytest.approx(whole.margin) and both.error == pytest.approx(whole.error)


def test_rows_that_cannot_be_told_apart_close_it() -> None:
    same_everywhere = {name: torch.ones(8) for name in ("own", "another row's", "empty")}
    with pytest.raises(TrainingError, match="another row's and empty"):
        Discrimination.of([same_everywhere], identity).check()


def test_an_untrained_pair_is_stopped_before_its_first_step(nla: NLA, target: Target) -> None:
    before = weights(nla)
    stage = joint(nla, target, steps=2, gate_rows=8)
    stage.held_out_rows = held_out  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TrainingError, match="stage joint stopped before its first step"):
        fit(stage, 2)
    assert same(before, weights(nla))


def test_the_gate_says_what_it_saw(nla: NLA, target: Target, caplog: pytest.LogCaptureFixture) -> None:
    stage = joint(nla, target, steps=1, gate_rows=8)
    stage.held_out_rows = held_out  # pyright: ignore[reportAttributeAccessIssue]
    stage._gate_errors = lambda batch: errors(0.1, 0.8, 0.9, rows=len(batch))  # pyright: ignore
    with caplog.at_level(logging.INFO, "nla.training.stages.joint"):
        fit(stage, 1)
    assert "gate: error of the explanation read: own 0." in caplog.text


def test_a_wrong_number_names_its_key(nla: NLA, target: Target) -> None:
    with pytest.raises(ConfigError, match="stage.joint.gate_rows=-1"):
        joint(nla, target, gate_rows=-1)
