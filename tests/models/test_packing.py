"""Rows of several samples: where everything is, and how many share a row."""

import pytest
import torch

from nla.models.packing import pack, samples_per_row


def test_places_by_hand():
    """A prompt of 2 tokens; samples of 3 and 1 tokens, and of 2 and 2. The last token of each is predicted, not fed."""
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 0]], dtype=torch.bool)
    packing = pack(mask, batch=2, prompt=2)
    assert packing.length == 4
    assert packing.segment.tolist() == [[0, 0, 1, 1], [0, 0, 1, 2]]
    assert packing.position.tolist() == [[0, 1, 2, 3], [0, 1, 2, 2]]
    assert list(zip(packing.row.tolist(), packing.column.tolist(), strict=True)) == [(0, 2), (0, 3), (1, 2), (1, 3)]
    predictors = list(zip(packing.predictor_row.tolist(), packing.predictor_column.tolist(), strict=True))
    assert predictors == [(0, 1), (0, 2), (0, 3), (0, 1), (1, 1), (1, 2), (1, 1), (1, 3)]


@pytest.mark.parametrize(
    ("group", "prompt", "time", "d_model"), [(4, 19, 39, 192), (8, 125, 100, 3584), (6, 10, 500, 64)]
)
def test_samples_per_row_divide_the_group(group: int, prompt: int, time: int, d_model: int):
    assert group % samples_per_row(group, prompt, time, d_model) == 0


def test_long_prompts_of_wide_models_are_shared_by_all_and_long_samples_of_narrow_ones_by_none():
    assert samples_per_row(8, 125, 100, 3584) == 8
    assert samples_per_row(8, 10, 500, 64) == 1
