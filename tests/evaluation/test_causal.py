"""The splice, against a naive one and by construction: a perfect reconstruction changes nothing."""

from dataclasses import replace

import pytest
import torch
from support.evaluation import SETTINGS, remembering, toy_data

from nla.core.objectives import normalize
from nla.errors import ModelError
from nla.evaluation import evaluate
from nla.evaluation.activations import EvaluatedRows, read_rows
from nla.evaluation.token_types import token_types
from nla.models.backbone import load_tokenizer
from nla.models.pair import NLA
from nla.models.prompts import token_ids
from nla.models.target import Target

CAUSAL = replace(SETTINGS, suites=["causal"], samples=0)


@pytest.fixture
def rows(target: Target) -> EvaluatedRows:
    return read_rows(target, toy_data(), "test", None, 32)


def test_next_logits_are_those_of_the_splice(target: Target, rows: EvaluatedRows) -> None:
    tokens = torch.tensor(rows.tokens[5])
    vectors = torch.randn(3, target.d_model, generator=torch.Generator().manual_seed(0))
    given = torch.cat([vectors, torch.full((1, target.d_model), torch.nan)])
    logits, present = target.next_logits(tokens, given)
    torch.testing.assert_close(present, rows.activation[5], atol=1e-4, rtol=1e-4)
    place = torch.tensor([len(tokens) - 1])
    for vector, found in zip(vectors, logits, strict=False):
        expected = target.splice(tokens.unsqueeze(0), place, vector.unsqueeze(0))[0, -1]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    clean = target.model(tokens.unsqueeze(0)).logits[0, -1].float()
    torch.testing.assert_close(logits[3], clean, atol=1e-4, rtol=1e-4)
    raw, _ = target.next_logits(tokens, vectors, rescale=False)
    expected = target.splice(tokens.unsqueeze(0), place, vectors[:1], rescale=False)[0, -1]
    torch.testing.assert_close(raw[0], expected, atol=1e-4, rtol=1e-4)


def test_a_perfect_reconstruction_changes_nothing(nla: NLA, target: Target, rows: EvaluatedRows) -> None:
    remembering(nla, rows.activation)
    found = evaluate(nla, target, toy_data(), CAUSAL, warm_start=nla).metrics["causal"]
    vectors = found["vectors"]
    assert found["n"] == len(rows) and found["flags"] == []
    for name in ("explanation", "warm_start", "activation"):
        assert vectors[name]["kl"]["value"] == pytest.approx(0, abs=1e-6)
        assert vectors[name]["kl_share"]["value"] == pytest.approx(0, abs=1e-5)
    assert vectors["mean"]["kl_share"] == {"value": 1.0, "ci95": [1.0, 1.0]}
    assert vectors["explanation"]["loss_recovered"]["value"] == pytest.approx(1, abs=1e-4)
    assert vectors["mean"]["loss_recovered"]["value"] == 0
    assert vectors["shuffled"]["kl"]["value"] > 0 and vectors["noise"]["kl"]["value"] > 0


def test_the_mean_by_hand(nla: NLA, target: Target, rows: EvaluatedRows) -> None:
    remembering(nla, rows.activation)
    found = evaluate(nla, target, toy_data(), CAUSAL).metrics["causal"]
    mean = normalize(rows.activation.double(), 1.0).mean(0).float()
    total = 0.0
    for index in range(len(rows)):
        tokens = torch.tensor([rows.tokens[index]])
        place = torch.tensor([tokens.shape[1] - 1])
        clean = target.model(tokens).logits[0, -1].double().log_softmax(-1)
        other = target.splice(tokens, place, mean.unsqueeze(0))[0, -1].double().log_softmax(-1)
        total += float((clean.exp() * (clean - other)).sum())
    assert found["vectors"]["mean"]["kl"]["value"] == pytest.approx(total / len(rows), rel=1e-3)
    assert sum(part["n"] for part in found["by_token_type"].values()) == len(rows)


def test_a_context_that_reads_otherwise_is_refused(nla: NLA, target: Target, rows: EvaluatedRows) -> None:
    remembering(nla, rows.activation)
    plain = target.forward
    target.forward = lambda *given, **options: plain(*given, **options).flip(-1)  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="read again"):
        evaluate(nla, target, toy_data(), replace(CAUSAL, neighbour_documents=0))


def test_token_types() -> None:
    tokenizer = load_tokenizer("world")
    (ids,) = token_ids(tokenizer, ["On Anna saw 3 dogs, un"], special=False)
    rows = [ids[: index + 1] for index in range(len(ids))]
    found = token_types(tokenizer, rows, [*ids[1:], -1])
    assert list(zip([str(tokenizer.decode([row[-1]])) for row in rows], found, strict=True)) == [
        ("On", "word"),
        (" Anna", "word"),
        (" saw", "word"),
        (" ", "punctuation"),
        ("3", "digit"),
        (" dog", "word start"),
        ("s", "word end"),
        (",", "punctuation"),
        (" un", "word"),
    ]
    assert token_types(tokenizer, [[int(tokenizer.eos_token_id)]], [-1]) == ["special"]
