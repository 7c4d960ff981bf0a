"""Rivals by hand: components, ridges, lookup tables and bags whose answer is known."""

import dataclasses
import json
from collections import defaultdict

import pytest
import torch
from rich.console import Console
from support.evaluation import PLAN, SETTINGS, ToySource, remembering, toy_data

from nla.core.fve import normalized_activations
from nla.data.teachers.local import LocalTeacher
from nla.data.teachers.protocol import Passage, Reply
from nla.evaluation import EvaluationData
from nla.evaluation.activations import read_rows, with_positions
from nla.evaluation.bootstrap import Resamples, Variance
from nla.evaluation.explanations import Texts, score
from nla.evaluation.subject import Subject, Variant, read_subject
from nla.evaluation.suites import rivals as suite
from nla.evaluation.suites import text_rivals as texts_suite
from nla.evaluation.suites.rivals import bag_of, pca, ridge, rivals, squared_error, token_mean
from nla.evaluation.suites.text_rivals import bag_of_explanation, spoken, text_rivals
from nla.models.pair import NLA
from nla.models.target import Target

QUICK = dataclasses.replace(SETTINGS, samples=0)


@pytest.fixture
def subject(nla: NLA, target: Target) -> Subject:
    remembering(nla, read_rows(target, toy_data(), "test", None, 32).activation)
    return read_subject(nla, target, toy_data(), QUICK)


def sphere() -> torch.Tensor:
    """Vectors of length 2 in 4 dimensions, mean 0: 3/4 of the variance along one axis, 1/4 along another."""
    axes = 2 * torch.eye(4, dtype=torch.float64)
    return torch.cat([axes[:1], -axes[:1]] * 3 + [axes[1:2], -axes[1:2]])


def test_components_of_a_plane_are_known() -> None:
    truth = sphere()
    variance = Variance(truth, Resamples([str(k) for k in range(8)], 50, 0))

    def found(error: float, training: torch.Tensor = truth) -> dict:
        return pca(training, truth, variance, torch.full((8,), error))

    half = found(0.5)
    assert [line["components"] for line in half["fve"]] == [1, 2, 4] and half["available"] == 4
    assert [line["fve"] for line in half["fve"]] == pytest.approx([0.75, 1.0, 1.0])
    assert half["components"] == 1 and found(0.2)["components"] == found(0.01)["components"] == 2
    assert found(1.3)["components"] == 0  # worse than the mean
    assert all(low <= high for low, high in [found(0.3)["components_ci95"]])
    few = found(0.01, truth[[0, 1]])  # two vectors have one component
    assert few["components"] is None and "all 1 components" in few["reason"] and few["available"] == 1
    assert few["fve"][0]["fve"] == pytest.approx(0.75)


def test_a_ridge_finds_a_linear_map_with_its_intercept() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(200, 3, generator=generator), torch.randn(3, 5, generator=generator)
    y = (x @ weight + 4).double()
    documents = [str(k // 4) for k in range(200)]
    asked = torch.randn(6, 3, generator=generator)
    torch.testing.assert_close(ridge(x, y, documents, asked), (asked @ weight + 4).double(), atol=0.01, rtol=0.01)
    noise = torch.randn(200, 100, generator=generator)
    worst = squared_error(ridge(noise, y, documents, noise[:50]), y[:50]).mean()
    best = squared_error(ridge(x, y, documents, x[:50]), y[:50]).mean()
    assert best < 1e-4 < worst
    constant = ridge(torch.ones(200, 2), y, documents, asked[:, :2])
    torch.testing.assert_close(constant, y.mean(0).expand(6, -1))  # inputs that are all alike: the mean
    assert ridge(x[:2], y[:2], ["a", "a"], asked).shape == (6, 5)  # too few to hold any out


def test_a_lookup_table_by_token() -> None:
    tokens, activation = torch.tensor([5, 9, 5]), torch.tensor([[1.0, 0], [4.0, 4.0], [3.0, 2.0]])
    found = token_mean(tokens, activation, torch.tensor([9, 5, 7, 11, 2]))
    everything = [8 / 3, 2.0]
    assert found.tolist() == [[4, 4], [2, 1], *[pytest.approx(everything)] * 3]


def test_a_bag_counts_the_most_frequent_tokens() -> None:
    bag = bag_of([[3, 3, 3], [5, 5], [8]], 2)
    assert bag([[3, 8, 5, 3], [], [99]]).tolist() == [[2, 1], [0, 0], [0, 0]]
    assert bag_of([[3, 3], [5]], 100)([[5, 7]]).tolist() == [[0, 1]]


def test_the_suite_on_tiny_models(nla: NLA, target: Target) -> None:
    subject = read_subject(nla, target, toy_data(), QUICK)
    result = rivals(subject, documents=10, positions=3, last=(1, 4))
    assert result["n"] == 24 and result["activations"] == 30
    lines = {line["tokens"]: line["fve"] for line in result["last_tokens"]}
    assert set(lines) == {1, 4, 32}
    words = [target.read([text]).token[0] for text in subject.rows.text]
    alone = subject.variance.fve(score(nla.reconstruct(words), subject.rows.activation).error)
    assert lines[1] == pytest.approx(alone["fve"], abs=1e-5)
    for name in ("bag_of_words", "linear_tokens", "token_mean"):
        assert result[name]["fve"] > -1 and len(result[name]["ci95"]) == 2
    training = read_rows(target, with_positions(toy_data(), 3), "joint", 10, 32)
    by_token: dict[str, list[torch.Tensor]] = defaultdict(list)
    for text, vector in zip(training.text, normalized_activations(training.activation), strict=True):
        by_token[target.read([text]).token[0]].append(vector)
    everywhere = normalized_activations(training.activation).mean(0)
    guess = torch.stack([torch.stack(by_token[word]).mean(0) if by_token[word] else everywhere for word in words])
    by_hand = subject.variance.fve(squared_error(guess, normalized_activations(subject.rows.activation)))
    assert result["token_mean"]["fve"] == pytest.approx(by_hand["fve"])
    assert result["pca"]["components"] == 0  # an untrained pair explains nothing
    json.dumps(result)
    console = Console(record=True, width=120)
    console.print(suite.table(result))
    assert "principal components" in console.export_text()


def test_without_training_documents_the_fitted_rivals_are_null_with_a_reason(nla: NLA, target: Target) -> None:
    subject = read_subject(nla, target, EvaluationData(ToySource(("test",)), PLAN), QUICK)
    result = rivals(subject)
    for name in ("bag_of_words", "linear_tokens", "token_mean", "pca"):
        assert result[name]["fve"] is None and "no training activations" in result[name]["reason"]
    written = text_rivals(subject)
    assert written["prompt_only"]["reason"] == written["bag_of_explanation"]["reason"] == result["pca"]["reason"]
    Console(record=True).print(suite.table(result), texts_suite.table(written))


def test_a_bag_of_words_is_enough_where_each_word_is_a_vector(subject: Subject) -> None:
    words, axes = ["dog", "fox", "brown"], 3 * torch.eye(32)[:3]
    index = torch.arange(24) % 3
    told = [words[k] for k in index.tolist()]
    texts = Texts(told, torch.ones(24, dtype=torch.long))  # type: ignore[arg-type]
    rows = dataclasses.replace(subject.rows, activation=axes[index])
    greedy = Variant(texts, axes[index], score(axes[index], axes[index]))
    known = dataclasses.replace(
        subject, rows=rows, variants={"greedy": greedy}, variance=Variance(axes[index], subject.resamples)
    )
    found = bag_of_explanation(known, rows, texts, 2000)
    assert found["fve"] == pytest.approx(1, abs=0.01) and found["activations"] == 24
    told[0] = None  # type: ignore[call-overload]
    malformed = bag_of_explanation(known, rows, texts, 2000)
    assert malformed["activations"] == 23 and malformed["fve"] < found["fve"] - 2 / 24  # counted as orthogonal


def test_the_target_is_asked_about_the_text_in_the_form_of_the_explanations(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = text_rivals(subject, asked=6)["prompt_only"]
    assert limit["fve"] is None and "the target reads 256" in limit["reason"]
    monkeypatch.setattr(subject.target.model.config, "max_position_embeddings", 8192)
    asked: list[Passage] = []

    def replies(self: LocalTeacher, passages: list[Passage]) -> list[Reply]:
        """Right, but for one that says nothing."""
        asked.extend(passages)
        place = [subject.rows.text.index(passage.text) for passage in passages]
        return [Reply(f"<explanation>row {k}.</explanation>" if k else "", "end", 1, 1) for k in place]

    wording: list[str] = []
    original = LocalTeacher.prompt
    with monkeypatch.context() as patch:
        patch.setattr(LocalTeacher, "replies", replies)
        patch.setattr(LocalTeacher, "prompt", lambda self, p: wording.append(original(self, p)) or wording[-1])
        found = text_rivals(subject, asked=6, examples=2)["prompt_only"]
    assert [passage.text for passage in asked] == [subject.rows.text[k] for k in (0, 4, 8, 12, 16, 20)]
    assert found["n"] == 6 and found["well_formed"] == pytest.approx(5 / 6)
    assert found["pair"]["fve"] == pytest.approx(1, abs=1e-6) and found["fve"] < 1
    assert wording[0].count("Description: row ") == 2 and asked[0].text in wording[0]
    real = text_rivals(subject, asked=3, examples=1)  # the tiny target itself
    assert real["prompt_only"]["n"] == 3 and real["prompt_only"]["fve"] is not None
    console = Console(record=True, width=120)
    console.print(texts_suite.table(real))
    assert "the target on the text alone, 3 rows" in console.export_text()


def test_what_a_reply_says() -> None:
    def said(text: str) -> str | None:
        return spoken(Reply(text, "end", 1, 1))

    assert said("Here: <explanation> It rains.</explanation> Bye") == "It rains."
    assert said(" It rains. ") == said("<explanation>It rains.") == "It rains."
    assert said("<explanation></explanation>") is None and said(" ") is None
