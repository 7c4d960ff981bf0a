"""The splice, against a naive one and by construction: a perfect reconstruction changes nothing."""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.evaluation import PLAN, SETTINGS, ToySource, remembering, toy_data
from support.models import make_tokenizer

from nla.core.objectives import normalize
from nla.errors import ModelError
from nla.evaluation import EvaluationData, activations, evaluate, explanations, suites
from nla.evaluation.activations import EvaluatedRows, read_rows
from nla.evaluation.suites.causal import check_same, same_document
from nla.evaluation.token_types import leading, token_types
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


def test_one_pass_for_all_vectors_is_the_splice_in_every_family(family_folder: str) -> None:
    """Windows of 8 tokens, soft caps, learned positions, experts: 20 tokens, the first one alone, a raw vector."""
    target = Target.from_pretrained(family_folder, 1)
    vectors = torch.randn(2, target.d_model, generator=torch.Generator().manual_seed(0))
    given = torch.cat([vectors, torch.full((1, target.d_model), torch.nan)])
    for length in (20, 1):
        tokens = torch.randint(5, 300, (length,), generator=torch.Generator().manual_seed(length))
        place = torch.tensor([length - 1])
        for rescale in (True, False):
            logits, _ = target.next_logits(tokens, given, rescale=rescale)
            for vector, found in zip(vectors, logits, strict=False):
                expected = target.splice(tokens.unsqueeze(0), place, vector.unsqueeze(0), rescale)[0, -1]
                torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
            clean = target.model(tokens.unsqueeze(0)).logits[0, -1].float()
            torch.testing.assert_close(logits[2], clean, atol=1e-4, rtol=1e-4)


def test_a_perfect_reconstruction_changes_nothing(nla: NLA, target: Target, rows: EvaluatedRows) -> None:
    remembering(nla, rows.activation)
    found = evaluate(nla, target, toy_data(), CAUSAL, warm_start=nla).metrics["causal"]
    vectors = found["vectors"]
    assert found["n"] == len(rows) and found["flags"] == []
    for name in ("explanation", "warm_start", "activation"):
        assert vectors[name]["kl"]["value"] == pytest.approx(0, abs=1e-6)
        assert vectors[name]["kl_share"]["value"] == pytest.approx(0, abs=1e-5)
    assert vectors["mean"]["kl_share"] == {"value": 1.0, "ci95": [1.0, 1.0], "n": len(rows)}
    assert vectors["explanation"]["loss_recovered"]["value"] == pytest.approx(1, abs=1e-4)
    assert vectors["mean"]["loss_recovered"]["value"] == 0
    for name in ("same_document", "shuffled", "mean", "noise", "zero"):
        above = vectors[name]["kl_above_explanation"]
        assert above["value"] == pytest.approx(vectors[name]["kl"]["value"], abs=1e-5) and above["ci95"][0] > 0


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


def test_a_malformed_explanation_is_worth_a_random_direction(nla: NLA, target: Target, rows: EvaluatedRows) -> None:
    remembering(nla, rows.activation, every_malformed=2)
    every = evaluate(nla, target, toy_data(), CAUSAL).metrics["causal"]["vectors"]
    assert 0 < every["explanation"]["kl"]["value"] < every["noise"]["kl"]["value"]
    remembering(nla, rows.activation, every_malformed=1)
    none = evaluate(nla, target, toy_data(), CAUSAL).metrics["causal"]
    noise = [found["noise"]["kl"]["value"] for found in (none["vectors"], every)]
    assert none["vectors"]["explanation"]["kl"]["value"] == pytest.approx(noise[0], rel=1e-5)
    assert noise[0] == pytest.approx(noise[1], rel=1e-5)
    (flag,) = (flag for flag in none["flags"] if "not clearly better" in flag)
    assert "random direction" in flag and "mean activation" in flag


def test_the_neighbour_is_the_nearest_position_of_the_same_text() -> None:
    assert same_document(list("aaabb"), [3, 9, 11, 5, 6]) == [1, 2, 1, 4, 3]
    assert same_document(list("aabcd"), [3, 9, 11, 5, 6]) == [1, 0, -1, -1, -1]


def test_a_text_with_one_position_has_no_neighbour(nla: NLA, target: Target) -> None:
    settings = replace(CAUSAL, positions_per_document=1)
    alone = read_rows(target, EvaluationData(ToySource(), replace(PLAN, positions_per_document=1)), "test", None, 32)
    remembering(nla, alone.activation)
    found = evaluate(nla, target, toy_data(), settings).metrics["causal"]["vectors"]["same_document"]
    assert found["kl"]["value"] is None and found["kl"]["n"] == 0
    assert found["reason"] == "no document has two positions"


def test_ranks_that_take_turns_and_other_batches_change_nothing(
    nla: NLA, target: Target, rows: EvaluatedRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = torch.randn(rows.activation.shape, generator=torch.Generator().manual_seed(0))
    remembering(nla, rows.activation + 0.3 * rows.activation.std() * noise, every_malformed=5)
    settings = replace(CAUSAL, suites=["causal", "next_words"], neighbour_documents=12)
    data = EvaluationData(ToySource(size=30), PLAN)

    def taking_turns(items: Sequence[Any], run: Callable[[Any], Any]) -> list[Any]:
        """As `shared` on two ranks: first what one of them does, then the other; results are pickled in between."""
        done = {index: run(items[index]) for rank in (0, 1) for index in range(rank, len(items), 2)}
        return [pickle.loads(pickle.dumps(done[index])) for index in range(len(items))]

    alone = evaluate(nla, target, data, settings).metrics
    for module in (suites.causal, suites.next_words, activations, explanations):
        monkeypatch.setattr(module, "shared", taking_turns)
    together = evaluate(nla, target, data, replace(settings, batch_size=3)).metrics
    assert alone["next_words"]["lens"]["rows"] > 0
    for name in ("causal", "next_words"):
        assert together[name] == alone[name]


def test_rounding_in_16_bits_is_no_broken_splice(nla: NLA, tiny_folder: str) -> None:
    rounded = Target.from_pretrained(tiny_folder, 1, dtype="bfloat16")
    rows = read_rows(rounded, toy_data(), "test", None, 32)
    remembering(nla, rows.activation)
    metrics = evaluate(nla, rounded, toy_data(), replace(CAUSAL, suites=["causal", "next_words"])).metrics
    assert metrics["causal"]["vectors"]["explanation"]["kl_share"]["value"] < 0.01
    assert metrics["next_words"]["n"] > 0


def test_an_activation_put_back_that_changes_the_distribution_is_refused(
    nla: NLA, target: Target, rows: EvaluatedRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembering(nla, rows.activation)
    plain = target.next_logits

    def broken(tokens: torch.Tensor, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, present = plain(tokens, vectors)
        return torch.cat([logits[:-1].flip(-1), logits[-1:]]), present

    monkeypatch.setattr(target, "next_logits", broken)
    with pytest.raises(ModelError, match="the activation itself"):
        evaluate(nla, target, toy_data(), CAUSAL)


def test_a_context_that_reads_otherwise_is_refused(
    nla: NLA, target: Target, rows: EvaluatedRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembering(nla, rows.activation)
    plain = target.forward
    monkeypatch.setattr(target, "forward", lambda *given, **options: plain(*given, **options).flip(-1))
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


@pytest.mark.parametrize("bos", [False, True])
def test_the_header_of_a_chat_turn_is_special(bos: bool) -> None:
    tokenizer = make_tokenizer(bos=bos)
    (ids,) = token_ids(tokenizer, ["The fox<|end|><|turn|>user\nThe quick fox"])
    types = token_types(tokenizer, [ids[: index + 1] for index in range(len(ids))], [*ids[1:], -1])
    words = [str(tokenizer.decode([token])) for token in ids]
    special = [word for word, kind in zip(words, types, strict=True) if kind == "special"]
    assert special == [*["<|bos|>"] * bos, "<|end|>", "<|turn|>", *words[words.index("<|turn|>") + 1 :][:2]]
    assert types[bos] != "special"  # the first word of a text, whatever the tokenizer puts before it
    assert leading(tokenizer, ids) == ids[:bos]


def test_what_rounding_may_do_to_an_activation_that_is_read_again() -> None:
    check_same(0.04, "row 1", True)
    check_same(0.1, "row 1", False)
    for apart, full_precision in ((0.1, True), (0.5, False), (float("nan"), True), (float("nan"), False)):
        with pytest.raises(ModelError, match="row 1: its context read again"):
            check_same(apart, "row 1", full_precision)


def test_rows_that_are_a_little_off_on_average_are_refused_in_16_bits_too(
    nla: NLA, target: Target, rows: EvaluatedRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row 0.1 away: for a single one of them that could be rounding."""
    remembering(nla, rows.activation)
    plain = Target.next_logits

    def off(self: Target, *given: Any, **options: Any) -> Any:
        logits, present = plain(self, *given, **options)
        return logits, 1.1 * present

    monkeypatch.setattr(Target, "next_logits", off)
    monkeypatch.setattr("nla.evaluation.suites.causal._full", lambda target: False)
    with pytest.raises(ModelError, match="0.09 of their norm|0.10 of their norm"):
        evaluate(nla, target, toy_data(), CAUSAL)
