"""Rewards and variants, against numbers derived by hand; the default path bit by bit against the plain formula."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from support.evaluation import SETTINGS, remembering, toy_data
from support.fve import fraction_of_variance_explained
from support.models import MARKER, TEMPLATES
from support.stages import ALL, TEXTS, batch, completions_of, fit, joint, make_kl, make_reward, same, terms_of, weights
from transformers import PreTrainedTokenizerBase

from nla.config.check import check_train
from nla.config.compose import compose, config_folder
from nla.core.objectives import (
    group_advantages,
    kl_to_reference,
    orthogonal_error,
    policy_gradient_loss,
    reconstruction_error,
    reward,
)
from nla.core.records import Completions, Rollout
from nla.errors import ConfigError
from nla.evaluation import evaluate
from nla.evaluation.activations import read_rows
from nla.evaluation.bootstrap import Resamples, Variance
from nla.evaluation.explanations import Texts
from nla.evaluation.suites.controls import by_prefix, unquoted
from nla.models.explanations import prefixes, without_quotes
from nla.models.pair import NLA
from nla.models.reconstructor import frozen_copy
from nla.models.target import Target
from nla.training.rewards import hinge, prefix_lengths, repeated_runs


def made(lengths: list[int], explanation: list[str | None], tokens: torch.Tensor | None = None) -> Completions:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    tokens = torch.arange(mask.numel()).view(mask.shape) if tokens is None else tokens
    return Completions(tokens, mask, explanation)


ERROR, ORTHOGONAL = torch.tensor([0.5, 0.25, 1.0]), torch.full((3,), 2.0)
THREE = made([10, 20, 4], ["a b", "a b", None])


def test_without_penalties_the_reward_is_that_of_the_error_alone() -> None:
    assert torch.equal(make_reward()(ERROR, ORTHOGONAL, THREE, 20), torch.tensor([-0.5, -0.25, -2.0]))
    logs = make_reward("neg_log_error")(ERROR, ORTHOGONAL, THREE, 20)
    assert torch.allclose(logs, -torch.tensor([0.5, 0.25, 2.0]).log())


def test_length_penalty_falls_on_every_token_of_every_sample() -> None:
    earned = make_reward(per_token=0.01)(ERROR, ORTHOGONAL, THREE, 20)
    assert torch.allclose(earned, torch.tensor([-0.5 - 0.1, -0.25 - 0.2, -2.0 - 0.04]))


def test_near_the_cap_the_penalty_rises_in_a_line() -> None:
    result = hinge(torch.tensor([3.0, 12.0, 14.0, 19.0, 20.0]), cap=20, margin=8)
    assert torch.allclose(result, torch.tensor([0.0, 0.0, 0.25, 0.875, 1.0]))
    earned = make_reward(near_cap=0.8, near_cap_tokens=20)(ERROR, ORTHOGONAL, THREE, 20)
    assert torch.allclose(earned, torch.tensor([-0.5 - 0.4, -0.25 - 0.8, -2.0 - 0.16]))


def test_repeated_runs_by_hand() -> None:
    tokens = torch.tensor([[1, 2, 1, 2, 1, 2], [1, 2, 3, 4, 5, 6], [7, 7, 7, 0, 0, 0], [8, 0, 0, 0, 0, 0]])
    mask = torch.arange(6) < torch.tensor([6, 6, 3, 1]).unsqueeze(1)
    # bigrams 12 21 12 21 12: three of five stood before; 77 77: one of two; one token has none
    repeated, runs = repeated_runs(tokens, mask, 2)
    assert (repeated.tolist(), runs.tolist()) == ([3, 0, 1, 0], [5, 5, 2, 0])
    assert repeated_runs(tokens, mask, 7)[1].tolist() == [0] * 4
    completions = Completions(tokens[:3], mask[:3], ["a", "b", None])
    earned = make_reward(repetition=0.5, repetition_tokens=2)(ERROR, ORTHOGONAL, completions, 20)
    assert torch.allclose(earned, torch.tensor([-0.5 - 0.3, -0.25, -2.0 - 0.25]))


def test_being_malformed_never_pays() -> None:
    """Of two samples alike in form, with any penalties, the one that cannot be parsed earns less."""
    tokens = torch.ones(2, 30, dtype=torch.long)
    pair = made([30, 30], ["a b", None], tokens)
    penalties = make_reward(per_token=0.2, near_cap=3.0, repetition=5.0)
    for kind in ("neg_error", "neg_log_error"):
        earned = make_reward(kind, per_token=0.2, near_cap=3.0, repetition=5.0)(
            torch.tensor([1.9, 1.9]), torch.full((2,), 2.0), pair, 30
        )
        assert earned[0] > earned[1]
    assert penalties(torch.tensor([1.9, 1.9]), torch.full((2,), 2.0), pair, 30)[1] < -2


@pytest.mark.parametrize("name", ["per_token", "near_cap", "repetition", "near_cap_tokens", "repetition_tokens"])
def test_penalties_that_reward_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"reward.{name}=-1"):
        make_reward(**{name: -1})


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ('It says "the end" twice.', "It says twice."),
        ("a “b” c «d» e `f` g", "a c e g"),
        ("the speaker's 'own word' isn't here", "the speaker's isn't here"),
        ("he said 'it's late' and ‘don’t go’ then", "he said and then"),
        ('never "closed', "never"),
        ('"all of it"', ""),
        ("5'10 tall, the dogs' bone", "5'10 tall, the dogs' bone"),
        ("plain text", "plain text"),
    ],
)
def test_quotations_are_taken_out(text: str, left: str) -> None:
    assert without_quotes(text) == left


def test_prefix_lengths_are_one_per_group_and_reach_every_length() -> None:
    lengths = [3, 5, 2, 9, 9, 9]
    drawn = [prefix_lengths(lengths, 3, key) for key in range(300)]
    assert all(row[0] == row[1] == row[2] and row[3] == row[4] == row[5] for row in drawn)
    assert {row[0] for row in drawn} == set(range(1, 6)) and {row[3] for row in drawn} == set(range(1, 10))
    assert prefix_lengths([0, 0], 2, 1) == [1, 1]


def test_prefix_lengths_hang_on_no_micro_batch_or_rank() -> None:
    lengths = [7] * 12
    whole = prefix_lengths(lengths, 3, 5)
    assert whole == prefix_lengths(lengths[:6], 3, 5) + prefix_lengths(lengths[6:], 3, 5, first=2)
    assert len(set(whole)) > 1 and whole != prefix_lengths(lengths, 3, 6)


def test_prefixes_by_token(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "The quick brown fox jumps over the lazy dog."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    result = prefixes(tokenizer, [text] * 4, [1, 3, len(ids), len(ids) + 5])
    assert result[2:] == [text, text]
    assert [tokenizer(part, add_special_tokens=False)["input_ids"] for part in result[:2]] == [ids[:1], ids[:3]]
    # a byte-level token may hold a part of a character: it is left out, not shown as a replacement sign
    for length in range(1, 9):
        (part,) = prefixes(tokenizer, ["日本語"], [length])
        assert "日本語".startswith(part)


def test_what_the_reconstructor_reads(nla: NLA) -> None:
    tokenizer = nla.reconstructor.tokenizer
    texts: list[str | None] = ['Tom "walks" to the town.', None, "The dog jumps.", "fox"]
    completions = completions_of(nla, texts)
    assert make_reward().reading(completions, 2, tokenizer, 0) is None
    stripped = make_reward(reads="without_quotes").reading(completions, 2, tokenizer, 0)
    assert stripped == ["Tom to the town.", "", "The dog jumps.", "fox"]
    parts = [make_reward(reads="random_prefix").reading(completions, 2, tokenizer, key) for key in range(20)]
    for row in parts:
        assert row is not None and all((whole or "").startswith(part) for whole, part in zip(texts, row, strict=True))
    assert len({row[0] for row in parts if row}) > 3


def test_the_reward_is_of_what_was_read(nla: NLA, target: Target) -> None:
    stage = joint(nla, target, kl=make_kl(0.0))
    texts: list[str | None] = ["It rains.", "Tom walks.", "dog", None]
    read = ["It", "Tom", "d", ""]
    rollout = Rollout(batch(1).activation, 4, completions_of(nla, texts), read)
    counts = {"samples": torch.tensor(4.0), "tokens": torch.tensor(40.0), "well_formed": torch.tensor(3.0)}
    metrics = terms_of(stage, rollout, counts).metrics
    error = nla.score(batch(1).activation.expand(4, -1), ["It", "Tom", "d", None]).error
    assert float(metrics["reward"]) == pytest.approx(-float(error.mean()), abs=1e-6)
    assert float(metrics["error"]) == pytest.approx(float(error[:3].mean()), abs=1e-6)
    assert [part.reading for part in rollout.split(4)] == [read]


def test_the_default_path_is_bit_by_bit_the_plain_formula(nla: NLA, target: Target) -> None:
    texts: list[str | None] = ["It rains.", None, "Tom walks.", "A lazy fox jumps.", "dog", "The town.", None, "fox"]
    stage = joint(nla, target)
    for parameter in nla.verbalizer.parameters():  # off the reference, so that the KL term counts
        parameter.data += 0.01
    completions = completions_of(nla, texts)
    mask, formed = completions.mask, completions.well_formed
    rollout = Rollout(
        batch(2).activation, 4, completions, stage.reward.reading(completions, 4, nla.verbalizer.tokenizer, 0)
    )
    counts = {"samples": torch.tensor(8.0), "tokens": mask.sum().float(), "well_formed": torch.tensor(6.0)}
    terms = terms_of(stage, rollout, counts)
    loss, metrics = terms.loss, terms.metrics

    activation = batch(2).activation.repeat_interleave(4, dim=0)
    error = reconstruction_error(nla.reconstructor(*nla.reconstructor.tokenize([t or "" for t in texts])), activation,
                                 nla.mse_scale)  # fmt: skip
    earned = reward(error, formed, orthogonal_error(activation, nla.mse_scale))
    log_probs = nla.verbalizer(batch(2).activation, completions.tokens, mask)
    assert stage.reference is not None
    with stage.reference.active() as frozen:
        reference = frozen(batch(2).activation, completions.tokens, mask)
    policy = policy_gradient_loss(log_probs, group_advantages(earned, 4), mask, "sample_mean", counts["samples"])
    kl = kl_to_reference(log_probs, reference, mask, "k3", 12.0, "sample_mean", counts["samples"])
    expected = policy + torch.where(formed, error, 0.0).sum() / counts["well_formed"] + 0.05 * kl
    assert torch.equal(loss, expected)
    assert torch.equal(metrics["reward"], earned.sum() / counts["samples"])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.4] * 5),
        ("linear", [0.4, 0.325, 0.25, 0.175, 0.1]),
        ("cosine", [0.4, 0.35607, 0.25, 0.14393, 0.1]),
    ],
)
def test_kl_schedules_by_hand(schedule: Any, expected: list[float]) -> None:
    kl = make_kl(0.4, schedule=schedule, final=0.1)
    assert [kl.at(step / 4) for step in range(5)] == pytest.approx(expected, abs=1e-5)
    assert kl.at(1.5) == pytest.approx(expected[-1], abs=1e-5)


def test_a_reference_is_kept_where_a_schedule_begins_at_zero(nla: NLA, target: Target) -> None:
    assert not make_kl(0.0).needs_reference and not make_kl(0.0, final=0.5).needs_reference
    rising = make_kl(0.0, schedule="linear", final=0.5)
    trainer = fit(joint(nla, target, steps=2, kl=rising), 2)
    assert float(trainer.callback_metrics["joint/kl"]) >= 0
    with pytest.raises(ConfigError, match="kl.final=-1"):
        make_kl(0.1, final=-1)


def test_the_schedule_reaches_the_loss(nla: NLA, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = Rollout(batch(1).activation, 4, completions_of(nla, list(TEXTS)))
    stage = joint(nla, target, steps=10, kl=make_kl(0.4, schedule="linear", final=0.0))
    for parameter in nla.verbalizer.parameters():
        parameter.data *= 1.02
    losses = []
    for step in (0, 5, 10):
        monkeypatch.setattr(type(stage), "global_step", step)
        losses.append(terms_of(stage, rollout, ALL).loss.item())
    assert losses[0] > losses[1] > losses[2]
    assert losses[0] - losses[1] == pytest.approx(losses[1] - losses[2], abs=1e-5)


def with_sampled(stage: Any, monkeypatch: pytest.MonkeyPatch, texts: list[str | None]) -> Any:
    """The stage, whose rollouts are these texts: an untrained pair writes nothing well-formed."""
    monkeypatch.setattr(stage, "collect", lambda given: Rollout(given.activation, 4, completions_of(stage.nla, texts)))
    return stage


def test_further_updates_of_the_reconstructor_leave_the_verbalizer_and_the_step_count(
    nla: NLA, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str | None] = [*TEXTS, *TEXTS[::-1], None, *TEXTS[1:], *TEXTS]
    after = []
    for updates in (1, 3):
        stage = with_sampled(joint(copy.deepcopy(nla), target, reconstructor_updates=updates), monkeypatch, texts)
        assert fit(stage, 1).global_step == 1
        after.append(stage.nla)
    assert same(weights(after[0].verbalizer), weights(after[1].verbalizer))
    assert not same(weights(after[0].reconstructor), weights(after[1].reconstructor), atol=1e-3)
    many = batch().activation.repeat_interleave(4, 0)
    once, thrice = (float(pair.score(many, texts).error.mean()) for pair in after)
    assert thrice < once
    with pytest.raises(ConfigError, match="reconstructor_updates=0"):
        joint(nla, target, reconstructor_updates=0)


def test_further_updates_are_the_steps_of_an_optimizer_on_the_same_texts(
    nla: NLA, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a loop by hand: AdamW on the mean error of the well-formed samples, in micro-batches or not."""
    texts: list[str | None] = [*TEXTS, None, *TEXTS[1:], *TEXTS, *TEXTS]
    by_hand = copy.deepcopy(nla)
    stage = joint(nla, target, reconstructor_updates=3, clip_norm=1e9, micro_batch_size=4, kl=make_kl(0.0))
    fit(with_sampled(stage, monkeypatch, texts), 1)
    many = batch().activation.repeat_interleave(4, 0)
    formed = torch.tensor([text is not None for text in texts])
    optimizer = torch.optim.AdamW(by_hand.reconstructor.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        prediction = by_hand.reconstructor(*by_hand.reconstructor.tokenize([text or "" for text in texts]))
        reconstruction_error(prediction, many, nla.mse_scale)[formed].mean().backward()
        optimizer.step()
    assert same(weights(nla.reconstructor), weights(by_hand.reconstructor), atol=2e-4)


def test_a_frozen_second_reconstructor_reads_beside_the_trained_one(
    nla: NLA, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = with_sampled(joint(nla, target, steps=3, frozen_reconstructor=True), monkeypatch, list(TEXTS) * 4)
    held_out = completions_of(nla, list(TEXTS))
    monkeypatch.setattr(nla.verbalizer, "sample", lambda *_, **__: held_out)
    start = copy.deepcopy(nla.reconstructor)
    trainer = fit(stage, 3)
    result = {name: float(trainer.callback_metrics[f"joint/validation/{name}"]) for name in ("fve", "fve_frozen")}
    truth = batch(seed=1).activation
    assert result["fve_frozen"] == pytest.approx(
        fraction_of_variance_explained(start.reconstruct(TEXTS), truth), abs=1e-5
    )
    assert result["fve"] == pytest.approx(
        fraction_of_variance_explained(nla.reconstructor.reconstruct(TEXTS), truth), abs=1e-5
    )
    assert abs(result["fve"] - result["fve_frozen"]) > 1e-3
    assert not [name for name in stage.state_dict() if "frozen" in name]


def test_a_frozen_copy_shares_what_is_not_trained(tiny_folder: str, nla: NLA) -> None:
    lora = NLA.from_target(tiny_folder, 1, TEMPLATES, MARKER, adapter={"rank": 2, "alpha": 4.0, "dropout": 0.0})
    for pair in (nla, lora):
        twin = frozen_copy(pair.reconstructor)
        for own, kept in zip(pair.reconstructor.parameters(), twin.parameters(), strict=True):
            assert (own is kept) == (not own.requires_grad) and torch.equal(own, kept)
        with torch.no_grad():
            pair.reconstructor.head.weight += 1
        assert not any(p.requires_grad and p.grad is not None for p in twin.parameters())
        assert not torch.equal(twin.head.weight, pair.reconstructor.head.weight)
    assert any(p.requires_grad for p in lora.reconstructor.parameters())


VARIANTS = {
    "neg_error": {},
    "neg_log_error": {"kind": "neg_log_error"},
    "length_penalty": {"per_token": 0.001},
    "brief": {"per_token": 0.007},
    "near_cap": {"near_cap": 0.5},
    "random_prefix": {"reads": "random_prefix"},
    "without_quotes": {"reads": "without_quotes"},
    "no_repetition": {"repetition": 0.5},
    "centered": {"advantage": "centered"},
    "leave_one_out": {"advantage": "leave_one_out"},
}


def test_each_file_of_the_group_is_one_variant() -> None:
    files = {path.stem for path in (config_folder() / "reward").glob("*.yaml")}
    assert files == set(VARIANTS)
    for name, fields in VARIANTS.items():
        assert instantiate(compose("train", [f"reward={name}"]).stage.joint.reward) == make_reward(**fields)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reward.per_token=-1", "reward.per_token=-1: a penalty must be 0 or more"),
        ("stage.joint.kl.final=-1", "kl.final=-1: must be 0 or more"),
        ("reward.reads=prefix", "reads='prefix': Input should be 'whole', 'random_prefix' or 'without_quotes'"),
        ("stage.joint.kl.schedule=step", "schedule='step'"),
    ],
)
def test_a_mistake_is_found_before_anything_is_loaded(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_train(compose("train", [override]))


def test_fve_by_prefix_length(nla: NLA, target: Target) -> None:
    """A reader that knows `row k.` and nothing shorter: the FVE is that of what it was shown."""
    rows = read_rows(target, toy_data(), "test", None, 32)
    remembering(nla, rows.activation, every_malformed=5)
    whole, shown = nla.reconstruct, []

    def reconstruct(texts: Sequence[str], batch_size: int = 64) -> torch.Tensor:
        shown.append(list(texts))
        return whole([text if text.endswith(".") else "" for text in texts], batch_size)

    nla.reconstruct = reconstruct  # type: ignore[method-assign]
    lengths = [1, 3, 50]
    texts = Texts([None if k % 5 == 0 else f"row {k}." for k in range(24)], torch.full((24,), 5))
    variance = Variance(rows.activation, Resamples(rows.document, 20, 0))
    result = by_prefix(nla, rows, texts, variance, lengths, 7)
    assert [part["tokens"] for part in result] == lengths
    ids = nla.reconstructor.tokenizer("row 7.", add_special_tokens=False)["input_ids"]
    assert len(ids) > 3 and nla.reconstructor.tokenizer.decode(ids[:3]) in shown[1]
    assert "row 7." in shown[2] and "row 7." not in shown[1]
    settings = replace(SETTINGS, prefix_tokens=lengths, samples=0)
    metrics = evaluate(nla, target, toy_data(), settings).metrics
    assert metrics["prefixes"][2]["fve"] == pytest.approx(metrics["fve"])
    assert metrics["fve"] > metrics["prefixes"][0]["fve"]
    assert evaluate(nla, target, toy_data(), replace(SETTINGS, samples=0)).metrics["prefixes"] == []
    with pytest.raises(ConfigError, match="lengths must be at least 1"):
        replace(SETTINGS, prefix_tokens=[0])


def test_fve_without_quotations(nla: NLA, target: Target) -> None:
    """A reader that knows what is quoted and nothing besides: without the quotations nothing is left."""
    rows = read_rows(target, toy_data(), "test", None, 32)
    remembering(nla, rows.activation, every_malformed=5)
    whole = nla.reconstruct
    nla.reconstruct = lambda texts, size=64: whole([t.strip('"') for t in texts], size)  # type: ignore[method-assign]
    variance = Variance(rows.activation, Resamples(rows.document, 20, 0))
    said: list[str | None] = [None if k % 5 == 0 else f'"row {k}."' for k in range(24)]
    result = unquoted(nla, rows, Texts(said, torch.full((24,), 5)), variance, 7)
    bare = Texts(["" if text else None for text in said], torch.full((24,), 5))
    expected = by_prefix(nla, rows, bare, variance, [1], 7)[0]
    assert result["fve"] == pytest.approx(expected["fve"]) and result["quoted_share"] == 1.0
    assert by_prefix(nla, rows, Texts(said, torch.full((24,), 5)), variance, [50], 7)[0]["fve"] > result["fve"]
    plain = unquoted(nla, rows, Texts([f"row {k}." for k in range(24)], torch.full((24,), 5)), variance, 7)
    assert plain["fve"] is None and plain["quoted_share"] == 0.0 and "quotes" in plain["reason"]


def test_a_frozen_reconstructor_judges_the_same_texts(nla: NLA, target: Target, tiny_folder: str) -> None:
    rows = read_rows(target, toy_data(), "test", None, 32)
    remembering(nla, rows.activation, every_malformed=5)
    frozen = NLA.from_target(tiny_folder, 1, TEMPLATES, MARKER)
    result = evaluate(nla, target, toy_data(), replace(SETTINGS, samples=0), warm_start=frozen)
    texts = result.variants["greedy"].texts.explanation
    formed = torch.tensor([text is not None for text in texts])
    expected = fraction_of_variance_explained(frozen.reconstruct([t or "" for t in texts]), rows.activation, formed)
    assert result.metrics["frozen_reconstructor"]["fve"] == pytest.approx(expected, abs=1e-6)
    assert result.metrics["fve"] > expected
    alone = evaluate(nla, target, toy_data(), replace(SETTINGS, samples=0)).metrics["frozen_reconstructor"]
    assert alone["fve"] is None and alone["reason"]
