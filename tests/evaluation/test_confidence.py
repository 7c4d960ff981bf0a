"""Agreement as confidence and the readability of texts, by hand and against torchmetrics."""

from dataclasses import replace

import pytest
import torch
from support.evaluation import SETTINGS, ToySource, remembering, toy_data
from torchmetrics.classification import BinaryAUROC

from nla.core.records import Completions
from nla.evaluation import Subject, evaluate, read_subject
from nla.evaluation.bootstrap import Resamples
from nla.evaluation.suites.confidence import _correlation, _ranks, calibration, claim_agreement, confidence
from nla.models.pair import NLA
from nla.models.sampling import SamplingParams
from nla.models.target import Target


def test_calibration_by_hand() -> None:
    # levels 0, 1/2, 1; false and true claims of two documents
    counts = torch.tensor([[[3.0, 1.0], [0.0, 0.0], [0.0, 2.0]], [[0.0, 0.0], [1.0, 1.0], [1.0, 3.0]]]).double()
    found = calibration(counts, Resamples(["a", "b"], 50, 0))
    agreement = [0.0] * 4 + [0.5] * 2 + [1.0] * 6
    truth = [0, 0, 0, 1, 0, 1, 0, 1, 1, 1, 1, 1]
    metric = BinaryAUROC()(torch.tensor(agreement), torch.tensor(truth))
    assert found["n"] == 12 and found["auroc"]["value"] == pytest.approx(float(metric))
    assert found["ece"]["value"] == pytest.approx((abs(1 - 0) + abs(1 - 0.5 * 2) + abs(5 - 6)) / 12)
    assert [point["coverage"] for point in found["abstention"]] == pytest.approx([1, 8 / 12, 6 / 12])
    assert [point["true_share"] for point in found["abstention"]] == pytest.approx([7 / 12, 6 / 8, 5 / 6])


def test_ranks_and_their_correlation() -> None:
    x, y = torch.tensor([3.0, 1.0, 1.0, 7.0]), torch.tensor([0.1, 0.4, 0.3, 0.0])
    assert _ranks(x).tolist() == pytest.approx([2 / 3, 0.5 / 3, 0.5 / 3, 1.0])
    first, second = _ranks(x), _ranks(y)
    moments = torch.stack([torch.ones(4), first, second, first**2, second**2, first * second], 1).double().sum(0)
    expected = torch.corrcoef(torch.stack([first, second]))[0, 1]
    assert float(_correlation(moments)) == pytest.approx(float(expected), abs=1e-6)


def disagreeing(nla: NLA, subject: Subject) -> None:
    """Greedy texts tell the truth about the colour and a lie about the animal; samples repeat only the truth."""
    rows, source = subject.rows, ToySource()
    truth = [dict(source.facts(name, text)) for name, text in zip(rows.document_id, rows.text, strict=True)]
    place = {tuple(activation.tolist()): k for k, activation in enumerate(rows.activation)}

    def sample(given: torch.Tensor, params: SamplingParams, *_: object, **__: object) -> Completions:
        texts = []
        for activation in given:
            known = truth[place[tuple(activation.tolist())]]
            honest = f"colour {known.get('colour', 'red')}."
            texts += [honest + " animal unicorn." if params.temperature == 0 else honest] * params.group_size
        mask = torch.ones(len(texts), 3, dtype=torch.bool)
        return Completions(torch.zeros(len(texts), 3, dtype=torch.long), mask, texts)

    nla.verbalizer.sample = sample  # type: ignore[method-assign,assignment]


def test_samples_that_repeat_the_truth_alone(nla: NLA, target: Target) -> None:
    disagreeing(nla, read_subject(nla, target, toy_data(), SETTINGS))
    subject = read_subject(nla, target, toy_data(), SETTINGS)
    counts = claim_agreement(ToySource(), subject, ["colour red."] * 2 * len(subject.rows), 2)
    assert float(counts.sum()) == 2 * len(subject.rows)
    found = confidence(subject, samples=3)
    rows = subject.rows
    facts = [dict(ToySource().facts(name, text)) for name, text in zip(rows.document_id, rows.text, strict=True)]
    guessed = sum("colour" not in known for known in facts)  # agreed upon, and not revealed
    assert found["claims"]["auroc"]["value"] == pytest.approx(1 - guessed / (guessed + len(rows)) / 2)
    assert found["claims"]["abstention"][3]["true_share"] == pytest.approx(1 - guessed / len(rows))
    assert found["claims"]["abstention"][3]["coverage"] == 0.5
    assert found["claims"]["ece"]["value"] == pytest.approx(guessed / (2 * len(rows)))
    assert found["flags"] == []


def test_readability_by_hand(nla: NLA, target: Target) -> None:
    subject = read_subject(nla, target, toy_data(), SETTINGS)
    remembering(nla, subject.rows.activation)
    metrics = evaluate(nla, target, toy_data(), replace(SETTINGS, suites=["readability"]), warm_start=nla).metrics
    found = metrics["readability"]["explanations"]  # each is `row k.`
    assert found["words_per_sentence"]["value"] == 1  # a number is no word
    assert found["unknown_words"]["value"] == 1  # the toy corpus has no `row`
    assert found["repeated_words"]["value"] == 0
    assert metrics["readability"]["change"]["nats_per_token"] == {"value": 0.0, "ci95": [0.0, 0.0]}
    nats = tokens = 0.0
    for row in range(len(subject.rows)):
        ids = torch.tensor([target.tokenizer(f"row {row}.")["input_ids"]])
        loss = target.model(ids, labels=ids).loss
        nats, tokens = nats + float(loss) * (ids.shape[1] - 1), tokens + ids.shape[1] - 1
    assert found["nats_per_token"]["value"] == pytest.approx(nats / tokens, rel=1e-4)
    assert metrics["readability"]["given"]["unknown_words"]["value"] == 0


def test_the_best_of_several_samples_by_hand(nla: NLA, target: Target) -> None:
    subject = read_subject(nla, target, toy_data(), SETTINGS)
    activation = subject.rows.activation
    remembering(nla, activation)

    def sample(given: torch.Tensor, params: SamplingParams, *_: object, **__: object) -> Completions:
        """The k-th of the samples of row i names row i + k: only the first is right."""
        rows = [(given[i] - activation).norm(dim=1).argmin().item() for i in range(len(given))]
        texts = [f"row {(row + k) % len(activation)}." for row in rows for k in range(params.group_size)]
        mask = torch.ones(len(texts), 3, dtype=torch.bool)
        return Completions(torch.zeros(len(texts), 3, dtype=torch.long), mask, list(texts))

    nla.verbalizer.sample = sample  # type: ignore[method-assign,assignment]
    subject = read_subject(nla, target, toy_data(), SETTINGS)
    assert confidence(subject, samples=3)["best_of"]["fve"] == pytest.approx(1, abs=1e-6)
