"""Next words: at the last block every lens is exact; stated words count in their order."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.evaluation import PLAN, SETTINGS, ToySource, remembering, toy_data
from support.models import make_tokenizer

from nla.data.teachers.expectations import TokenWords
from nla.evaluation import EvaluationData, evaluate
from nla.evaluation.activations import read_layers, read_rows
from nla.evaluation.lenses import affine, fit_tuned_lens, lens_logits
from nla.evaluation.suites.controls import other_document
from nla.evaluation.suites.next_words import ending, stated_words
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


def test_at_the_last_block_a_tuned_lens_has_nothing_to_learn(last: Target) -> None:
    rows = read_rows(last, DATA, "test", None, 4)
    logits = lens_logits(last, rows.activation)
    for index in (0, 11):
        clean = last.model(torch.tensor([rows.tokens[index]])).logits[0, -1].float()
        torch.testing.assert_close(logits[index], clean, atol=1e-4, rtol=1e-4)
    lens = fit_tuned_lens(last, DATA, "joint", None)
    assert lens.rows > 0 and lens.error < 1e-6
    torch.testing.assert_close(lens_logits(last, lens(rows.activation)), logits, atol=1e-3, rtol=1e-3)


def test_an_affine_relation_is_recovered() -> None:
    """Also of dimensions that are a thousand times as large as the others."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 6, generator=generator) + 3
    inputs[:, 2] *= 1000
    inputs[:, 4] = 1.0  # does not vary
    weight, bias = torch.randn(6, 6, generator=generator), torch.randn(6, generator=generator)
    weight[3] *= 1000
    lens = affine(inputs, inputs @ weight.T + bias, torch.arange(200) % 5 == 0)
    assert lens.rows == 160 and lens.error < 1e-8
    other = torch.randn(10, 6, generator=generator)
    other[:, 4] = 1.0
    expected = (other @ weight.T + bias).double()
    torch.testing.assert_close(lens(other), expected, atol=1e-1, rtol=1e-3)  # of outputs up to 3000


def test_noise_is_not_fitted() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, outputs = torch.randn(60, 40, generator=generator), torch.randn(60, 40, generator=generator)
    lens = affine(inputs, outputs, torch.arange(60) % 3 == 0)
    assert lens.error < 1.5  # the largest penalty; the smallest one would give about 100


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        (None, []),
        ('It is about harbour.\nAfter "the" comes surely "sea", "ship" or "fog".\nIt just said "by the".',
         ["sea", "ship", "fog"]),
        ('It is about "harbour".', []),
        ('A story that goes on with "the sea," or “fog”, then \'the end\'.', ["the", "sea", "fog", "end"]),
        ("Tom's story, nothing quoted.", []),
    ],
)  # fmt: skip
def test_stated_words(text: str | None, stated: list[str]) -> None:
    assert stated_words(text) == stated


def test_the_last_tokens_keep_what_the_tokenizer_puts_before() -> None:
    row = list(range(20, 40))
    assert ending(make_tokenizer(bos=False), row) == row[-8:]
    with_bos = make_tokenizer(bos=True)
    assert ending(with_bos, [2, *row]) == [2, *row[-8:]]
    assert ending(with_bos, [2, *row[:7]]) == [2, *row[:7]]  # shorter: read whole, once


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
    assert methods["explanation"]["words"] == 1.5
    assert methods["tuned_lens"]["hit@1"]["value"] > 0.8 > methods["other_document"]["hit@1"]["value"]
    partner = other_document(rows.document, 0)
    assert partner is not None
    met = [k % 2 == 1 and best[k][0] == truth[0] for k, truth in zip(partner, best, strict=True)]
    assert methods["explanation"]["hit@5"]["chance"] == pytest.approx(sum(met) / len(rows))
    assert methods["explanation"]["above_logit_lens"]["value"] == pytest.approx(-1)
    # the pair does not know such texts and gives the same vector for all
    assert methods["reconstruction"]["hit@1"]["value"] < methods["tuned_lens"]["hit@1"]["value"]
    assert any("logit lens" in flag for flag in found["flags"])
    assert methods["last_tokens"]["hit@20"]["value"] <= 1


def test_a_malformed_explanation_offers_nothing(nla: NLA, last: Target) -> None:
    nla.layer = last.layer
    remembering(nla, read_rows(last, DATA, "test", None, 32).activation, every_malformed=2)
    methods = evaluate(nla, last, DATA, NEXT).metrics["next_words"]["methods"]
    assert methods["tuned_lens"]["hit@1"]["value"] == 1.0
    assert methods["reconstruction"]["hit@1"]["value"] == 0.5  # the other half at the activation's norm: as the lens
    assert methods["reconstruction"]["above_tuned_lens"]["value"] == -0.5


def test_without_stated_words_the_lenses_stand_alone(nla: NLA, target: Target) -> None:
    rows = read_rows(target, toy_data(), "test", None, 32)
    remembering(nla, rows.activation)
    found = evaluate(nla, target, toy_data(), replace(NEXT, neighbour_documents=0)).metrics["next_words"]
    assert set(found["methods"]) == {"logit_lens", "last_tokens", "other_document"}
    assert "no explanation" in found["reason"] and "switched off" in found["lens"]["reason"]
