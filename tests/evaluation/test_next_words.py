"""Next words: at the last block every lens is exact; stated words count in their order."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.evaluation import PLAN, SETTINGS, ToySource, remembering, toy_data

from nla.data.teachers.expectations import TokenWords
from nla.evaluation import EvaluationData, evaluate
from nla.evaluation.activations import read_layers, read_rows
from nla.evaluation.lenses import fit_tuned_lens, lens_logits
from nla.models.backbone import depth
from nla.models.pair import NLA
from nla.models.target import Target

NEXT = replace(SETTINGS, suites=["next_words"], samples=0)
DATA = EvaluationData(ToySource(size=40), PLAN)


@pytest.fixture
def last(target: Target) -> Target:
    return Target(target.model, target.tokenizer, depth(target.model) - 1)


def test_several_layers_are_read_at_the_same_rows(target: Target) -> None:
    rows = read_rows(target, DATA, "joint", 6, 4)
    states, documents = read_layers(target, DATA, "joint", 6, [0, target.layer])
    assert states.shape == (len(rows), 2, target.d_model)
    found = {name: [] for name in documents}
    for name, state in zip(documents, states[:, 1], strict=True):
        found[name].append(state)
    for name, activation in zip(rows.document, rows.activation, strict=True):
        torch.testing.assert_close(found[name].pop(0), activation, atol=1e-5, rtol=1e-5)


def test_at_the_last_block_a_tuned_lens_has_nothing_to_learn_but_the_norm(last: Target) -> None:
    rows = read_rows(last, DATA, "test", None, 4)
    logits = lens_logits(last, rows.activation)
    for index in (0, 11):
        clean = last.model(torch.tensor([rows.tokens[index]])).logits[0, -1].float()
        torch.testing.assert_close(logits[index], clean, atol=1e-4, rtol=1e-4)
    lens = fit_tuned_lens(last, DATA, "joint", None)
    assert lens.rows > 0 and lens.error < 0.2
    agree = lens_logits(last, lens(3.7 * rows.activation)).argmax(-1) == logits.argmax(-1)  # the norm is not read
    assert agree.float().mean() > 0.8


def test_lenses_and_stated_words(nla: NLA, last: Target) -> None:
    nla.layer = last.layer
    rows = read_rows(last, DATA, "test", None, 32)
    remembering(nla, rows.activation)
    words = TokenWords(last.tokenizer)
    best = []
    for tokens in rows.tokens:
        probability, candidate = last.model(torch.tensor([tokens])).logits[0, -1].softmax(-1).topk(64)
        best.append([word for word, _ in words.most_probable(candidate.tolist(), probability.tolist())])
    plain: Any = nla.verbalizer.sample

    def expecting(given: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        """Every second row states its most probable word second, the others not at all."""
        completions = plain(given, *arguments, **options)
        numbers = [int(text.removeprefix("row ").removesuffix(".")) for text in completions.explanation]
        said = [
            f'Next comes perhaps "zzz" or "{best[k][0]}".' if k % 2 else 'Next comes perhaps "zzz".' for k in numbers
        ]
        return replace(completions, explanation=said)

    nla.verbalizer.sample = expecting  # type: ignore[method-assign]
    found = evaluate(nla, last, DATA, NEXT).metrics["next_words"]
    methods = found["methods"]
    assert found["n"] == len(rows)
    assert [methods["explanation"][f"hit@{k}"]["value"] for k in (1, 5, 20)] == [0, 0.5, 0.5]
    assert methods["logit_lens"]["hit@1"]["value"] == pytest.approx(1)
    assert methods["tuned_lens"]["hit@1"]["value"] > 0.8 > methods["other_document"]["hit@1"]["value"]
    assert methods["last_tokens"]["hit@20"]["value"] <= 1


def test_without_stated_words_the_lenses_stand_alone(nla: NLA, target: Target) -> None:
    rows = read_rows(target, toy_data(), "test", None, 32)
    remembering(nla, rows.activation)
    found = evaluate(nla, target, toy_data(), replace(NEXT, neighbour_documents=0)).metrics["next_words"]
    assert set(found["methods"]) == {"logit_lens", "last_tokens", "other_document"}
    assert "no explanation" in found["reason"] and "switched off" in found["lens"]["reason"]
