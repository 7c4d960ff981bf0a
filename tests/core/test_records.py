"""Records move as a whole, refuse wrong shapes, and split only between groups."""

import dataclasses

import jaxtyping
import pytest
import torch

from nla.core.records import ActivationBatch, Completions, Rollout, TokenBatch
from nla.errors import ConfigError


def make_rollout(batch: int = 3, group: int = 2, time: int = 4) -> Rollout:
    samples = batch * group
    completions = Completions(
        tokens=torch.arange(samples * time).view(samples, time),
        mask=torch.ones(samples, time, dtype=torch.bool),
        explanation=[f"text {i}" for i in range(samples)],
        log_probs=torch.randn(samples, time),
    )
    return Rollout(
        activation=torch.randn(batch, 5),
        group=group,
        completions=completions,
    )


def test_to_moves_every_tensor_and_keeps_the_rest():
    moved = make_rollout().to("meta")
    assert moved.activation.is_meta
    assert moved.completions.tokens.is_meta
    assert moved.completions.explanation[0] == "text 0"


def test_records_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_rollout().group = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_wrong_shapes_are_refused_in_tests():
    with pytest.raises(jaxtyping.TypeCheckError):
        ActivationBatch(torch.zeros(2, 3), ["a", "b"], torch.zeros(3, dtype=torch.long), ["", ""], None)


def test_token_batch_counts_positions():
    batch = TokenBatch(
        tokens=torch.zeros(2, 4, dtype=torch.long),
        mask=torch.ones(2, 4, dtype=torch.bool),
        row=torch.tensor([0, 0, 1]),
        position=torch.tensor([1, 3, 2]),
        document=["a", "a", "b"],
        text=["x", "y", "z"],
        explanation=None,
    )
    assert len(batch) == 3
    assert batch.to("cpu").explanation is None


@pytest.mark.parametrize(("size", "parts"), [(2, [1, 1, 1]), (4, [2, 1]), (5, [2, 1]), (100, [3])])
def test_split_keeps_groups_whole(size: int, parts: list[int]):
    rollout = make_rollout()
    pieces = list(rollout.split(size))
    assert [len(piece.activation) for piece in pieces] == parts
    assert torch.equal(torch.cat([piece.activation for piece in pieces]), rollout.activation)
    assert torch.equal(torch.cat([piece.completions.tokens for piece in pieces]), rollout.completions.tokens)
    assert [text for piece in pieces for text in piece.completions.explanation] == rollout.completions.explanation


def test_split_below_one_group_says_what_to_do():
    with pytest.raises(ConfigError, match="at least 2 samples"):
        next(make_rollout().split(1))
