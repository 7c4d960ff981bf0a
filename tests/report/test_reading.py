"""A pair reads a text: each record by hand, on a pair whose explanations and reconstructions are given."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from nla.core.objectives import normalize
from nla.core.records import Completions
from nla.errors import ConfigError, DataError
from nla.models.pair import NLA
from nla.models.sampling import SamplingParams
from nla.models.target import Target
from nla.report import read_tokens

TEXT = "The quick brown fox jumps"


@pytest.fixture
def activations(target: Target) -> Tensor:
    return target.read([TEXT], "all").activation


def orthogonal(vector: Tensor) -> Tensor:
    other = torch.zeros_like(vector)
    other[0], other[1] = vector[1], -vector[0]
    return other


def scripted(nla: NLA, activations: Tensor, malformed: int = 1) -> NLA:
    """Row k is explained as `Good k. Idle k.`: without the first sentence the reconstruction is orthogonal.

    Row `malformed` has no explanation. A sample says `Good k.` or, each second one, `Idle k.`.
    """

    def sample(given: Tensor, params: SamplingParams, seed: int = 0, first_row: int = 0) -> Completions:
        rows = [int((activations - row).norm(dim=1).argmin()) for row in given]
        texts: list[str | None] = [None if row == malformed else f"Good {row}. Idle {row}." for row in rows]
        if params.group_size > 1:
            texts = [f"{('Good', 'Idle')[k % 2]} {row}." for row in rows for k in range(params.group_size)]
        return Completions(
            torch.zeros(len(texts), 1, dtype=torch.long), torch.ones(len(texts), 1, dtype=torch.bool), texts
        )

    def reconstruct(texts: Sequence[str], batch_size: int = 64) -> Tensor:
        vectors = []
        for text in texts:
            vector = activations[int(text.split()[1].rstrip("."))] if text else torch.ones(activations.shape[1])
            vectors.append(3.0 * (vector if text.startswith("Good") else orthogonal(vector)))
        return torch.stack(vectors)

    nla.verbalizer.sample = sample  # type: ignore[method-assign]
    nla.reconstruct = reconstruct  # type: ignore[method-assign]
    return nla


def of_mean(activations: Tensor, mean: Tensor | None = None) -> list[float]:
    truth = normalize(activations, math.sqrt(activations.shape[1]))
    return (truth - (truth.mean(0) if mean is None else mean)).square().mean(1).tolist()


def test_a_record_for_every_token(nla: NLA, target: Target, activations: Tensor):
    report = read_tokens(
        scripted(nla, activations), target, [TEXT, "Tom"], names=["fox", "tom"], pair="toy", max_tokens=99
    )
    fox, tom = report.texts
    assert (fox.name, tom.name, fox.pair, fox.mean, fox.layer_index, fox.left_out) == (
        "fox",
        "tom",
        "toy",
        "text",
        1,
        0,
    )
    ids = target.tokenizer(TEXT)["input_ids"]
    assert [token.token_id for token in fox.results] == ids and len(tom.results) >= 1
    assert [token.position for token in fox.results] == list(range(len(ids)))
    assert "".join(token.token for token in fox.results) == TEXT
    assert all(TEXT[token.start : token.end].strip() == token.token.strip() for token in fox.results)
    expected = of_mean(activations)
    for row, token in enumerate(fox.results):
        error = 2.0 if row == 1 else 0.0
        assert token.mse == pytest.approx(error, abs=1e-5)
        assert token.mse_of_mean == pytest.approx(expected[row], rel=1e-4)
        assert token.relative_error == pytest.approx(error / expected[row], abs=1e-4)
        assert token.cosine_similarity == pytest.approx(0.0 if row == 1 else 1.0, abs=1e-5)
        assert token.l2_norm == pytest.approx(float(activations[row].norm()), rel=1e-5)
        assert token.samples == [] and token.agreement is None and token.remark is None


def test_a_sentence_is_worth_what_the_error_rises_without_it(nla: NLA, target: Target, activations: Tensor):
    (text,) = read_tokens(scripted(nla, activations), target, [TEXT]).texts
    good, idle = text.results[0].sentences
    said = text.results[0].description
    assert said is not None and (said[good.start : good.end], said[idle.start : idle.end]) == ("Good 0.", "Idle 0.")
    assert good.contribution == pytest.approx(2 / of_mean(activations)[0], rel=1e-4)
    assert idle.contribution == pytest.approx(0, abs=1e-4)
    assert text.results[1].description is None and text.results[1].sentences == []


def test_the_nearest_wrong_explanation_of_the_same_text(nla: NLA, target: Target, activations: Tensor):
    (text,) = read_tokens(scripted(nla, activations), target, [TEXT]).texts
    cosines = normalize(activations, 1.0) @ normalize(activations, 1.0).T
    cosines.fill_diagonal_(-2)
    cosines[:, 1] = -2  # malformed
    for row, token in enumerate(text.results):
        assert token.nearest_wrong is not None
        assert token.nearest_wrong.position == int(cosines[row].argmax())
        error = 2 * (1 - float(cosines[row].max())) / of_mean(activations)[row]
        assert token.nearest_wrong.relative_error == pytest.approx(error, rel=1e-3, abs=1e-4)


def test_samples_and_their_agreement(nla: NLA, target: Target, activations: Tensor):
    (text,) = read_tokens(scripted(nla, activations), target, [TEXT], samples=2, mean=torch.zeros(32)).texts
    token = text.results[2]
    assert [sample.description for sample in token.samples] == ["Good 2.", "Idle 2."]
    # the mean is given as zero: every activation is at distance 1 from it, and the samples are orthogonal
    assert text.mean == "given" and token.mse_of_mean == pytest.approx(1)
    assert [sample.relative_error for sample in token.samples] == pytest.approx([0, 2], abs=1e-4)
    assert token.agreement == pytest.approx(0, abs=1e-5)
    assert token.sentences[0].contribution == pytest.approx(2, abs=1e-4)


def test_the_next_words_are_the_targets_own(nla: NLA, target: Target, activations: Tensor):
    (text,) = read_tokens(scripted(nla, activations), target, [TEXT], next_words=3).texts
    ids = torch.tensor([target.tokenizer(TEXT)["input_ids"]])
    with torch.no_grad():
        probabilities = target.model(input_ids=ids).logits[0].softmax(-1)
    for row, token in enumerate(text.results):
        assert len(token.next_words) == 3
        assert [p for _, p in token.next_words] == sorted((p for _, p in token.next_words), reverse=True)
        best = str(target.tokenizer.decode([int(probabilities[row].argmax())]))
        assert token.next_words[0][1] >= float(probabilities[row].max()) - 1e-5
        assert (best.strip() or best) in [word for word, _ in token.next_words]


def test_only_the_first_tokens(nla: NLA, target: Target, activations: Tensor):
    (text,) = read_tokens(scripted(nla, activations), target, [TEXT], max_tokens=3).texts
    assert len(text.results) == 3 and text.left_out == len(activations) - 3
    assert text.text == TEXT[: text.results[-1].end]


def test_the_batch_size_changes_nothing(nla: NLA, target: Target):
    few, many = (read_tokens(nla, target, [TEXT], samples=2, max_new_tokens=3, batch_size=size) for size in (2, 64))
    said = [[(token.description, token.samples) for token in report.texts[0].results] for report in (few, many)]
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("texts", "options", "error", "message"),
    [
        (["  "], {}, DataError, "text 1 holds no token to read"),
        ([], {}, DataError, "no text to read"),
        (["Tom"], {"samples": 1}, ConfigError, "samples=1: agreement needs at least 2"),
    ],
)
def test_mistakes(nla: NLA, target: Target, texts: list[str], options: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        read_tokens(nla, target, texts, **options)


def test_a_target_at_another_layer_is_refused(nla: NLA, tiny_folder: str):
    with pytest.raises(ConfigError, match="layer 1 of width 32, the target is read at layer 2"):
        read_tokens(nla, Target.from_pretrained(tiny_folder, 2), [TEXT])
