"""The straightforward joint step, kept as the baseline of `joint_step.py`.

Rollout by `generate` on repeated prompts; log-probs by a softmax over the whole vocabulary at every position, prompt
and padding included; a separate copy of the model as reference, run the same way; rewards from one text per forward,
and the reconstructor once more on all texts for its error. Same losses, same optimizer.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from plain_rollout import generate
from torch import Tensor
from transformers import PreTrainedModel

from nla.core.objectives import (
    group_advantages,
    kl_to_reference,
    orthogonal_error,
    policy_gradient_loss,
    reconstruction_error,
    reward,
)
from nla.core.records import Completions
from nla.models.backbone import body, embed
from nla.models.pair import NLA

Activations = Float[Tensor, "batch d_model"]
Predictions = Float[Tensor, "sample d_model"]
LogProbs = Float[Tensor, "sample time"]


@dataclass(frozen=True, slots=True)
class Setting:
    """Of a joint step."""

    samples: int
    max_new_tokens: int
    kl: float  # coefficient
    clip_norm: float


@dataclass(frozen=True, slots=True)
class Step:
    """The three parts of a step before its backward pass; the third takes what the second returns."""

    rollout: Callable[[NLA, Activations, Setting, int], Completions]
    score: Callable[[NLA, Completions], Predictions]
    loss: Callable[[NLA, Activations, Completions, Predictions, Setting], Float[Tensor, ""]]


def plain(nla: NLA) -> Step:
    """The baseline, with today's verbalizer as its reference."""
    reference = copy.deepcopy(nla.verbalizer.model).requires_grad_(False).eval()

    def loss(
        nla: NLA, activation: Activations, completions: Completions, scored: Predictions, setting: Setting
    ) -> Float[Tensor, ""]:
        prompts = nla.verbalizer.prompt_embeddings(activation).repeat_interleave(setting.samples, 0)
        ours = log_probs(nla.verbalizer.model, prompts, completions.tokens, completions.mask)
        with torch.no_grad():
            anchor = log_probs(reference, prompts, completions.tokens, completions.mask)
        prediction = nla.reconstructor(*nla.reconstructor.tokenize(texts_of(completions)))
        return total(nla, activation, completions, scored, prediction, ours, anchor, setting)

    return Step(rollout, score, loss)


def rollout(nla: NLA, activation: Activations, setting: Setting, seed: int) -> Completions:
    verbalizer = nla.verbalizer
    torch.manual_seed(seed)
    with torch.no_grad():
        prompts = verbalizer.prompt_embeddings(activation)
    stop_ids, pad_id = verbalizer.stop_ids, verbalizer.pad_id
    tokens, mask = generate(verbalizer.model, prompts, setting.samples, stop_ids, pad_id, setting.max_new_tokens)
    return Completions(tokens, mask, verbalizer.parse(tokens, mask))


@torch.no_grad()
def score(nla: NLA, completions: Completions) -> Predictions:
    one = nla.reconstructor
    return torch.cat([one(*one.tokenize([text])) for text in texts_of(completions)])


def log_probs(
    model: PreTrainedModel,
    prompts: Float[Tensor, "sample prompt d_model"],
    tokens: Int[Tensor, "sample time"],
    mask: Bool[Tensor, "sample time"],
) -> LogProbs:
    inputs = torch.cat([prompts, embed(body(model), tokens)], dim=1)
    attended = torch.cat([mask.new_ones(prompts.shape[:2]), mask], dim=1).long()
    output: Any = model(inputs_embeds=inputs, attention_mask=attended, use_cache=False)
    every = output.logits.float().log_softmax(-1)[:, prompts.shape[1] - 1 : -1]
    return torch.where(mask, every.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), 0.0)


def texts_of(completions: Completions) -> list[str]:
    """What is scored: malformed explanations run through empty, with weight 0."""
    return [text or "" for text in completions.explanation]


def total(
    nla: NLA,
    activation: Activations,
    completions: Completions,
    scored: Predictions,
    prediction: Predictions,
    ours: LogProbs,
    reference: LogProbs,
    setting: Setting,
) -> Float[Tensor, ""]:
    """Policy gradient, KL and error, alike in both steps: `scored` earns the reward, `prediction` is trained."""
    truth = activation.repeat_interleave(setting.samples, dim=0)
    mask, well_formed, count = completions.mask, completions.well_formed, len(completions)
    orthogonal = orthogonal_error(truth, nla.mse_scale)
    earned = reward(reconstruction_error(scored.detach(), truth, nla.mse_scale), well_formed, orthogonal)
    policy = policy_gradient_loss(ours, group_advantages(earned, setting.samples), mask, "sample_mean", count)
    kl = kl_to_reference(ours, reference, mask, "k3", 12.0, "sample_mean", count)
    error = torch.where(well_formed, reconstruction_error(prediction, truth, nla.mse_scale), 0.0)
    return policy + setting.kl * kl + error.sum() / well_formed.sum().clamp_min(1)
