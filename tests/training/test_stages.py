"""The three training steps on a tiny random model, driven by a real Lightning Trainer."""

import copy
from typing import Any

import pytest
import torch
from support.stages import (
    ALL,
    TEXTS,
    batch,
    completions_of,
    fit,
    joint,
    make_kl,
    make_reward,
    options,
    reconstructor,
    same,
    terms_of,
    weights,
)
from torch.utils.data import DataLoader
from torchmetrics import R2Score

from nla.core.fve import FractionOfVarianceExplained
from nla.core.objectives import normalize, whitening
from nla.core.records import ActivationBatch, Rollout
from nla.errors import TrainingError
from nla.models.pair import NLA
from nla.models.target import Target
from nla.training.optim import MuonAdamW, parameter_groups
from nla.training.stages import VerbalizerStage


def surprisal(stage: VerbalizerStage, activation: torch.Tensor) -> torch.Tensor:
    """Nats per token of the batch's explanations, read from these activations."""
    nats, tokens = stage._surprisal(batch(), activation)
    return nats / tokens


def test_verbalizer_stage_learns_and_touches_nothing_else(nla: NLA, target: Target) -> None:
    before = weights(nla.reconstructor)
    stage = VerbalizerStage(nla, target, **options(30), max_new_tokens=8)
    first = float(surprisal(stage, batch().activation))
    trainer = fit(stage, 30)
    assert float(surprisal(stage, batch().activation)) < 0.5 * first
    assert same(before, weights(nla.reconstructor))
    assert {"verbalizer/validation/reading_gap", "verbalizer/validation/fve"} <= set(trainer.callback_metrics)
    assert trainer.global_step == 30


def test_reading_gap_is_positive_once_the_activation_is_read(nla: NLA, target: Target) -> None:
    stage = VerbalizerStage(nla, target, **options(60), max_new_tokens=8)
    fit(stage, 60)
    right, wrong = (surprisal(stage, activation) for activation in (batch().activation, batch().activation.roll(2, 0)))
    assert float(wrong - right) > 0.1


def test_reconstructor_stage_learns_and_touches_nothing_else(nla: NLA, target: Target) -> None:
    before = weights(nla.verbalizer)
    trainer = fit(reconstructor(nla, target, **options(30)), 30)
    assert float(trainer.callback_metrics["reconstructor/error"]) < 0.5
    logged = {name.removeprefix("reconstructor/validation/") for name in trainer.callback_metrics}
    assert {"fve", "fve_shuffled", "cosine", "cosine_shuffled"} <= logged and "well_formed" not in logged
    assert same(before, weights(nla.verbalizer))


def test_reconstructor_stage_validates_on_the_given_texts(nla: NLA, target: Target) -> None:
    """The ceiling: no verbalizer is asked. Rows whose texts it has learnt are read, exchanged ones are not."""
    stage = reconstructor(nla, target, **options(60))
    trainer = fit(stage, 60)
    trainer.validate(stage, DataLoader([batch()], batch_size=None), verbose=False)
    fve, shuffled = (float(trainer.callback_metrics[f"reconstructor/validation/{n}"]) for n in ("fve", "fve_shuffled"))
    texts = nla.reconstructor.reconstruct(TEXTS[:4])
    metric = FractionOfVarianceExplained(32)
    metric.update(texts, batch().activation)
    assert fve == pytest.approx(float(metric.compute()["fve"]), abs=1e-5) and fve > 0.5 > 0 > shuffled


def test_without_explanations_a_warm_start_stops_with_the_remedy(nla: NLA, target: Target) -> None:
    bare = ActivationBatch(batch().activation, ["a"] * 4, torch.arange(4), TEXTS, None)
    with pytest.raises(TrainingError, match="data.explanation_column"):
        fit(VerbalizerStage(nla, target, **options(1), max_new_tokens=8), 1, [bare])


def test_joint_step_moves_both_halves_and_starts_at_kl_zero(nla: NLA, target: Target) -> None:
    before = weights(nla.verbalizer), weights(nla.reconstructor)
    trainer = fit(joint(nla, target), 1)
    assert float(trainer.callback_metrics["joint/kl"]) == 0.0
    assert float(trainer.callback_metrics["joint/validation/nats_per_token"]) >= 0.0
    assert float(trainer.callback_metrics["joint/sampling_gap"]) < 1e-4
    moved = not same(before[1], weights(nla.reconstructor))
    assert moved == (float(trainer.callback_metrics["joint/well_formed"]) > 0)  # it learns from well-formed texts only
    assert not same(before[0], weights(nla.verbalizer)) or float(trainer.callback_metrics["joint/equal_groups"]) == 1
    assert trainer.global_step == 1


def test_validation_says_how_likely_the_explanations_are_under_the_target(nla: NLA, target: Target) -> None:
    stage = joint(nla, target)
    said = completions_of(nla, ["It rains.", "Tom walks.", None, "dog"])
    stage.sample = lambda *_: said  # pyright: ignore[reportAttributeAccessIssue]
    trainer = fit(stage, 1, limit_train_batches=0)
    trainer.validate(stage, DataLoader([batch()], batch_size=None), verbose=False)
    found = target.surprisal(["It rains.", "Tom walks.", "dog"])
    expected = sum(nats for nats, _ in found) / sum(count for _, count in found)
    assert float(trainer.callback_metrics["joint/validation/nats_per_token"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("length", ["sample_mean", "token_mean"])
def test_micro_batches_never_change_the_gradient(nla: NLA, target: Target, length: str) -> None:
    texts: list[str | None] = ["It rains.", None, "Tom walks.", "A lazy fox jumps.", "dog", "The town.", None, "fox"]
    gradients = []
    for size in (8, 4):
        pair = copy.deepcopy(nla)
        stage = joint(pair, target, micro_batch_size=size, length=length)
        for parameter in pair.verbalizer.parameters():  # off the reference, so that the KL term counts
            parameter.data += 0.01
        rollout = Rollout(batch(2).activation, 4, completions_of(pair, texts))
        counts = {**ALL, "tokens": rollout.completions.mask.sum(), "well_formed": torch.tensor(6.0)}
        for part in rollout.split(size):
            terms_of(stage, part, counts).loss.backward()
        gradients.append([p.grad for p in pair.parameters() if p.grad is not None])
    assert len(gradients[0]) > 10
    assert same(*gradients, atol=1e-6)


def test_policy_gradient_is_that_of_reinforce_with_the_groups_baseline(nla: NLA, target: Target) -> None:
    """Against sum_t A log p by hand, with the rewards recomputed from the definition."""
    texts: list[str | None] = ["It rains.", "Tom walks.", "dog", None]
    stage = joint(nla, target, kl=make_kl(0.0), reward=make_reward(advantage="centered"))
    rollout = Rollout(batch(1).activation, 4, completions_of(nla, texts))
    counts = {"samples": torch.tensor(4.0), "tokens": torch.tensor(40.0), "well_formed": torch.tensor(3.0)}
    terms_of(stage, rollout, counts).loss.backward()
    found = [p.grad.clone() for p in nla.verbalizer.parameters() if p.grad is not None]
    nla.zero_grad()

    score = nla.score(batch(1).activation.expand(4, -1), texts)
    reward = torch.where(torch.tensor([t is not None for t in texts]), -(2 - 2 * score.cosine), torch.tensor(-2.0))
    mask = rollout.completions.mask
    log_probs = nla.verbalizer(batch(1).activation.expand(4, -1), rollout.completions.tokens, mask)
    per_sample = log_probs.sum(1) / mask.sum(1)
    (-((reward - reward.mean()) * per_sample).sum() / 4).backward()
    expected = [p.grad for p in nla.verbalizer.parameters() if p.grad is not None]
    assert same(found, expected, atol=1e-5)


def test_training_raises_the_probability_of_the_better_explanation(nla: NLA, target: Target) -> None:
    texts: list[str | None] = ["It rains.", "Tom walks.", "dog", "fox"]
    rollout = Rollout(batch(1).activation, 4, completions_of(nla, texts))
    many = batch(1).activation.expand(4, -1)
    best = int(nla.score(many, texts).error.argmin())
    stage = joint(nla, target, kl=make_kl(0.0))
    optimizer = torch.optim.SGD(nla.verbalizer.parameters(), lr=0.05)
    before = nla.verbalizer(many, rollout.completions.tokens, rollout.completions.mask).sum(1)[best].item()
    terms_of(stage, rollout, ALL).loss.backward()
    optimizer.step()
    assert nla.verbalizer(many, rollout.completions.tokens, rollout.completions.mask).sum(1)[best].item() > before


def test_kl_coefficient_changes_the_gradient_once_the_policy_has_moved(nla: NLA, target: Target) -> None:
    gradients = []
    for coefficient in (0.01, 1.0):
        pair = copy.deepcopy(nla)
        stage = joint(pair, target, kl=make_kl(coefficient))
        for parameter in pair.verbalizer.parameters():
            parameter.data *= 1.02
        rollout = Rollout(batch(1).activation, 4, completions_of(pair, list(TEXTS)))
        terms = terms_of(stage, rollout, ALL)
        loss, metrics = terms.loss, terms.metrics
        loss.backward()
        assert float(metrics["kl"]) > 0
        gradients.append([p.grad for p in pair.verbalizer.parameters() if p.grad is not None])
    assert not same(*gradients, atol=1e-4)


def test_malformed_samples_train_the_verbalizer_and_not_the_reconstructor(nla: NLA, target: Target) -> None:
    stage = joint(nla, target, kl=make_kl(0.0))
    none: list[str | None] = [None, None, None, None]
    counts = {"samples": torch.tensor(4.0), "tokens": torch.tensor(40.0), "well_formed": torch.tensor(1.0)}
    terms_of(stage, Rollout(batch(1).activation, 4, completions_of(nla, none)), counts).loss.backward()
    assert all(float(p.grad.abs().max()) == 0 for p in nla.reconstructor.parameters() if p.grad is not None)
    assert any(p.grad is not None for p in nla.reconstructor.parameters())  # it ran, with weight 0
    nla.zero_grad()

    mixed: list[str | None] = [None, "It rains.", "Tom walks.", None]
    terms_of(stage, Rollout(batch(1).activation, 4, completions_of(nla, mixed)), counts).loss.backward()
    assert any(float(p.grad.abs().max()) > 0 for p in nla.verbalizer.parameters() if p.grad is not None)


def test_fve_metric_is_torchmetrics_r2_on_normalised_vectors() -> None:
    torch.manual_seed(0)
    truth = torch.randn(50, 32) + 2 * torch.randn(32)
    prediction = truth + torch.randn(50, 32)
    metric = FractionOfVarianceExplained(32)
    metric.update(prediction[:20], truth[:20])
    metric.update(prediction[20:], truth[20:])
    reference = R2Score(multioutput="variance_weighted")
    scale = 32**0.5
    expected = reference(normalize(prediction.double(), scale), normalize(truth.double(), scale))
    assert float(metric.compute()["fve"]) == pytest.approx(float(expected), abs=1e-7)
    assert metric.compute()["fve_normalized_mean"] > metric.compute()["fve"]


def test_muon_and_adamw_as_one_optimizer_do_what_each_does_alone() -> None:
    def model() -> torch.nn.Sequential:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Embedding(2000, 8), torch.nn.Linear(8, 8))

    one, other = model(), model()
    rates: Any = {"lr": 1e-2, "muon_lr": 1e-2, "weight_decay": 0.0, "betas": (0.9, 0.98)}
    both = MuonAdamW(parameter_groups({"all": one}, {}), **rates)
    muon = torch.optim.Muon([other[1].weight], lr=1e-2, weight_decay=0.0)
    adamw = torch.optim.AdamW([other[0].weight, other[1].bias], lr=1e-2, weight_decay=0.0, betas=(0.9, 0.98))
    assert [len(group["params"]) for group in both.param_groups] == [1, 2]
    for step in range(3):
        for net, opts in ((one, [both]), (other, [muon, adamw])):
            net(torch.tensor([1, 2, 3 + step])).square().sum().backward()
            for optimizer in opts:
                optimizer.step()
                optimizer.zero_grad()
        if step == 0:  # a checkpoint in between changes nothing
            state = copy.deepcopy(both.state_dict())
            both = MuonAdamW(
                parameter_groups({"all": one}, {}), lr=1e-2, muon_lr=1e-2, weight_decay=0.0, betas=(0.9, 0.98)
            )
            both.load_state_dict(state)
    assert same(weights(one), weights(other))


@pytest.mark.parametrize("kind", ["reconstructor", "joint"])
def test_a_whitened_error_is_measured_before_the_first_step(kind: str, nla: NLA, target: Target) -> None:
    stage = joint(nla, target, error="whitened") if kind == "joint" else reconstructor(
        nla, target, **options(1), error="whitened"
    )  # fmt: skip
    rows = torch.randn(64, nla.d_model, generator=torch.Generator().manual_seed(0)) * torch.linspace(1, 3, nla.d_model)
    stage.training_rows = lambda count: iter(  # pyright: ignore[reportAttributeAccessIssue]
        [ActivationBatch(rows, ["d"] * 64, torch.arange(64), ["x"] * 64, ["x"] * 64)]
    )
    assert stage.error_weight is None
    fit(stage, 1)
    assert stage.error_weight is not None and torch.allclose(
        stage.error_weight, whitening(rows, nla.mse_scale), rtol=1e-4
    )
    assert stage.error_weight[0] > stage.error_weight[-1]
    assert not any("error_weight" in name for name in stage.state_dict())
