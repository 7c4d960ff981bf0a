"""The ridge head: the best linear reading of the untrained model, the same over any number of ranks."""

import dataclasses
import math

import pytest
import torch
from support.models import TEMPLATES, make_model, make_tokenizer
from support.stages import batch, options, reconstructor

from nla.core.objectives import normalize, reconstruction_error
from nla.core.records import ActivationBatch
from nla.errors import ConfigError, DataError
from nla.models.backbone import body, truncated
from nla.models.pair import NLA
from nla.models.reconstructor import Reconstructor
from nla.models.target import Target
from nla.training.head_start import ridge_head


@pytest.fixture
def reader() -> Reconstructor:
    return Reconstructor(truncated(body(make_model("qwen3")), 1), make_tokenizer(), TEMPLATES.reconstructor)


def alone(value: torch.Tensor) -> torch.Tensor:
    return value


def error_of(reader: Reconstructor, head: torch.Tensor, rows: ActivationBatch) -> float:
    assert rows.explanation is not None
    with torch.no_grad():
        reader.head.weight.copy_(head)
    return float(reconstruction_error(reader.reconstruct(rows.explanation), rows.activation, math.sqrt(32)).mean())


def test_it_reads_better_than_the_identity_and_says_its_held_out_error(reader: Reconstructor) -> None:
    rows = batch()
    before = error_of(reader, torch.eye(32), rows)
    head, figures = ridge_head(reader, [rows], [rows], alone)
    assert error_of(reader, head, rows) == pytest.approx(figures["error"], abs=1e-6)
    assert figures["error"] < 0.1 < before, "four texts are read exactly by a linear map of width 32"
    assert figures["texts"] == 4 and float(head.norm()) == pytest.approx(math.sqrt(32))


def test_the_penalty_is_the_one_that_reads_held_out_rows_best(reader: Reconstructor) -> None:
    held_out = batch(seed=9)  # other activations for the same texts: what was learnt means nothing
    _, random = ridge_head(reader, [batch()], [held_out], alone)
    _, same = ridge_head(reader, [batch()], [batch()], alone)
    assert same["penalty"] <= random["penalty"] and same["error"] < random["error"]


def test_sums_go_over_ranks(reader: Reconstructor) -> None:
    """Two ranks with the same rows: twice the texts, the same head and the same mean error."""
    alone_head, figures = ridge_head(reader, [batch()], [batch()], alone)
    head, both = ridge_head(reader, [batch()], [batch()], lambda value: 2 * value)
    assert both == {**figures, "texts": 8.0}
    torch.testing.assert_close(head, alone_head)


def test_padding_and_rows_without_texts_are_left_out(reader: Reconstructor) -> None:
    padding = dataclasses.replace(batch(seed=3), padding=True)
    _, figures = ridge_head(reader, [batch()], [padding, batch()], alone)
    assert figures == ridge_head(reader, [batch()], [batch()], alone)[1]
    with pytest.raises(DataError, match="no explained rows"):
        ridge_head(reader, [padding], [batch()], alone)


def test_a_mistake_names_the_key(nla: NLA, target: Target) -> None:
    with pytest.raises(ConfigError, match="stage.reconstructor.head_texts=0: must be at least 1"):
        reconstructor(nla, target, **options(1), head_start="ridge", head_texts=0)


def test_scale_does_not_change_what_is_read(reader: Reconstructor) -> None:
    rows = batch()
    head, _ = ridge_head(reader, [rows], [rows], alone)
    scaled = dataclasses.replace(rows, activation=normalize(rows.activation, 7.0))
    other, _ = ridge_head(reader, [scaled], [scaled], alone)
    torch.testing.assert_close(head, other, rtol=1e-3, atol=1e-4)
