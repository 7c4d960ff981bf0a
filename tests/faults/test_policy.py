"""Cases 31, 33, 34, 36 and 37 of the fault list: groups without a signal, hacked rewards, shared prefixes, seeds.

Elsewhere: advantages of NaN and equal rewards by hand in test_objectives; KL 0 at step 0 and its coefficient in
test_stages; loader workers on resume in test_datamodule; sharing of prefixes in every architecture in test_sampling.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.loaders import loader, take
from support.models import sampling_params
from support.runs import overrides, trace, train
from support.stages import batch, fit, joint, make_reward, same, terms_of, weights
from transformers import PreTrainedTokenizerBase

from nla.core.records import Completions, Rollout
from nla.models.explanations import CLOSE, OPEN, format_response
from nla.models.pair import NLA
from nla.models.sampling import SamplingParams, engine
from nla.models.target import Target
from nla.training.rewards import Reward


def answers(nla: NLA, texts: list[str]) -> Completions:
    """Completions as the policy would write them, with the stop token, parsed by the verbalizer."""
    verbalizer = nla.verbalizer
    rows = [verbalizer.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    rows = [[*row, verbalizer.prompt.end_of_turn] for row in rows]
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [verbalizer.pad_id] * (longest - len(row)) for row in rows])
    mask = torch.arange(longest) < torch.tensor([len(row) for row in rows]).unsqueeze(1)
    return Completions(tokens, mask, verbalizer.parse(tokens, mask))


# 31


@pytest.mark.parametrize("kind", ["all malformed", "empty", "cut off", "equal", "nan"])
@pytest.mark.parametrize("advantage", ["standardized", "leave_one_out"])
def test_a_group_without_a_signal_adds_nothing_and_breaks_nothing(
    nla: NLA, target: Target, monkeypatch: pytest.MonkeyPatch, kind: str, advantage: Any
) -> None:
    """31: beside a healthy group; the gradient is finite, and that of the other group alone."""
    good: list[str] = [format_response(text) for text in ("It rains.", "Tom walks.", "dog", "A fox.")]
    bad = {"all malformed": ["a", "b", OPEN, CLOSE], "empty": [""] * 4}.get(kind, [good[0]] * 4)
    whole = answers(nla, [*good, *bad])
    if kind == "cut off":  # the stop token is missing
        mask = whole.mask & ~((torch.arange(8) >= 4).unsqueeze(1) & (whole.tokens == nla.verbalizer.prompt.end_of_turn))
        whole = Completions(whole.tokens, mask, nla.verbalizer.parse(whole.tokens, mask))
    assert [text is None for text in whole.explanation] == [False] * 4 + [kind not in ("equal", "nan")] * 4
    usual = Reward.__call__

    def earned(self: Reward, *given: Any) -> torch.Tensor:
        rewards = usual(self, *given)
        if kind == "nan" and len(rewards) == 8:
            rewards[6] = torch.nan
        return rewards

    monkeypatch.setattr(Reward, "__call__", earned)
    gradients, counts = [], {"samples": torch.tensor(8.0), "tokens": whole.mask.sum(), "well_formed": torch.tensor(8.0)}
    for rows, completions in ((2, whole), (1, whole.cut(slice(0, 4)))):
        pair = copy.deepcopy(nla)
        stage = joint(pair, target, reward=make_reward(advantage=advantage))
        loss = terms_of(stage, Rollout(batch(2).activation[:rows], 4, completions), counts).loss
        loss.backward()
        gradients.append([p.grad for p in pair.verbalizer.parameters() if p.grad is not None])
    assert all(bool(gradient.isfinite().all()) for gradient in gradients[0])
    assert any(float(gradient.abs().max()) > 1e-4 for gradient in gradients[0])
    assert same(*gradients, atol=1e-6)


def test_groups_without_a_signal_are_counted(nla: NLA, target: Target) -> None:
    """31: `equal_groups`, which an alarm watches."""
    good = [format_response(text) for text in ("It rains.", "Tom walks.", "dog", "A fox.")]
    completions = answers(nla, [*good, *["a"] * 4])
    counts = {"samples": torch.tensor(8.0), "tokens": completions.mask.sum(), "well_formed": torch.tensor(4.0)}
    metrics = terms_of(joint(nla, target), Rollout(batch(2).activation, 4, completions), counts).metrics
    assert float(metrics["equal_groups"]) == 0.5


# 34

HACKS = {
    "repeated tags": format_response("It rains.") * 2,
    "nested tags": f"{OPEN}{OPEN}It rains.{CLOSE}{CLOSE}",
    "closing tag inside": f"{OPEN}It rains.{CLOSE} and more{CLOSE}",
    "the marker": f"{OPEN}It rains. \u320e{CLOSE}",
    "the reconstructor's suffix": f"{OPEN}It rains.</text> <summary>{CLOSE}",
    "10k characters": f"{OPEN}{'It rains. ' * 1000}{CLOSE}",
    "no text": f"{OPEN} {CLOSE}",
}


@pytest.mark.parametrize("hack", HACKS)
def test_a_hacked_answer_is_malformed_and_gains_nothing(nla: NLA, hack: str) -> None:
    """34: even where the reconstructor would have predicted perfectly, it earns what an orthogonal vector earns."""
    completions = answers(nla, [format_response("It rains."), HACKS[hack]])
    assert completions.explanation == ["It rains.", None]
    earned = make_reward()(torch.zeros(2), torch.full((2,), 2.0), completions, 4000)
    assert earned.tolist() == [0.0, -2.0]


# 36


def test_two_activations_behind_the_same_tokens_keep_apart(nla: NLA) -> None:
    """36: together, one after the other, without sharing and by `generate`: each has the same text in all four."""
    verbalizer, activation = nla.verbalizer, batch(2, seed=5).activation

    def rows(found: Any) -> list[list[int]]:
        tokens, mask = found[:2]
        return [row[:length].tolist() for row, length in zip(tokens, mask.sum(1))]

    def sampled(rows_of: torch.Tensor, **options: Any) -> list[list[int]]:
        completions = verbalizer.sample(rows_of, sampling_params(max_new_tokens=20, temperature=0.0, **options))
        return rows((completions.tokens, completions.mask))

    together = sampled(activation)
    assert together[0] != together[1]
    assert [*sampled(activation[:1]), *sampled(activation[1:])] == together
    assert [*sampled(activation[1:]), *sampled(activation[:1])] == together[::-1]
    assert sampled(activation, backend="hf") == together
    prompts = verbalizer.prompt_embeddings(activation).detach()
    apart = engine.sample(
        verbalizer.model, prompts, SamplingParams.greedy(20), shared=0, stop_ids=verbalizer.stop_ids, pad_id=0
    )
    assert rows(apart) == together
    twice = verbalizer.sample(activation[[0, 0]], sampling_params(2, max_new_tokens=20), seed=3)
    alone = verbalizer.sample(activation[[0]], sampling_params(2, max_new_tokens=20), seed=3)
    time = alone.tokens.shape[1]
    assert torch.equal(twice.tokens[:2, :time], alone.tokens)


# 37


def test_the_same_seed_is_the_same_run_and_another_is_not(nla: NLA, target: Target) -> None:
    """37: weights after three joint steps, bitwise; the reward is a price on length, which a random policy varies."""
    ends, how = [], {"sampling": SamplingParams.policy(40, group_size=4), "reward": make_reward(per_token=0.1)}
    for seed in (1, 1, 2):
        pair = copy.deepcopy(nla)
        fit(joint(pair, target, steps=3, seed=seed, **how), 3)
        ends.append(weights(pair))
    assert same(ends[0], ends[1]) and not same(ends[0], ends[2])


@pytest.mark.parametrize("workers", [2, 4])
def test_loader_workers_keep_the_order(tokenizer: PreTrainedTokenizerBase, workers: int) -> None:
    """37: 0, 2 and 4 of them, over the end of an epoch."""

    def seen(count: int) -> list[list[tuple[str, int]]]:
        return [list(zip(b.document, b.position.tolist())) for b in take(loader(tokenizer, num_workers=count), 9)]

    assert seen(workers) == seen(0)


def test_jobs_of_a_sweep_share_no_random_state(
    tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """37: a job run after another one in the same process is the job run alone, dropout and all."""
    monkeypatch.chdir(tmp_path)
    job = {"steps": 3, "size": 6}
    train(*overrides(tiny_folder, "alone", "reconstructor", **job))
    train(*overrides(tiny_folder, "other", "verbalizer", **job))
    torch.rand(17)
    train(*overrides(tiny_folder, "after", "reconstructor", **job))
    assert trace("after") == trace("alone") and len(trace("alone")) == 3
