"""Rollouts to be timed: what is sampled from, from which prompts, how often, until when."""

import bisect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from models import Size, parameters, random_llama, world_activations, world_pair
from torch import Tensor
from transformers import PreTrainedModel

from nla.core.objectives import normalize
from nla.models.backbone import body, embed
from nla.models.sampling import SamplingParams, engine


@dataclass(frozen=True, slots=True)
class Task:
    name: str
    about: str
    model: PreTrainedModel
    prompts: Float[Tensor, "batch prompt d_model"]
    shared: int  # leading tokens that all prompts have in common
    samples: int
    max_new_tokens: int
    pad_id: int = 0
    stop_ids: frozenset[int] = frozenset({-1})  # no token has this id: nothing stops
    dtype: Literal["float32"] | None = None  # what the engine computes in; None: the weights' own type

    @property
    def rows(self) -> int:
        return len(self.prompts) * self.samples

    def sample(self, seed: int) -> tuple[Int[Tensor, "sample time"], Bool[Tensor, "sample time"]]:
        """Tokens and mask by the engine."""
        tokens, mask, _ = engine.sample(
            self.model,
            self.prompts,
            replace(SamplingParams.policy(self.max_new_tokens, self.samples), dtype=self.dtype),
            shared=self.shared,
            stop_ids=self.stop_ids,
            pad_id=self.pad_id,
            seed=seed,
        )
        return tokens, mask


def world_task(pair: Path | None, activations: int, samples: int, max_new_tokens: int) -> Task:
    """The demo's shape: its prompt, its stop token."""
    nla = world_pair(pair)
    v = nla.verbalizer
    prompts = v.prompt_embeddings(world_activations(nla, activations)).detach()
    place, about = v.prompt.position, "world target" if pair is None else "world target, trained pair"
    return Task("world", about, v.model, prompts, place, samples, max_new_tokens, v.pad_id, v.stop_ids)


def random_task(
    size: Size,
    activations: int,
    samples: int,
    max_new_tokens: int,
    length: int = 125,
    position: int = 105,
    dtype: torch.dtype = torch.bfloat16,
) -> Task:
    """Random weights, a prompt of random tokens with its marker at `position`; nothing stops."""
    llama: Any = random_llama(size)
    model: PreTrainedModel = llama.to(dtype)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(size.vocab, (1, length), generator=generator)
    with torch.no_grad():
        prompts = embed(body(model), tokens).repeat(activations, 1, 1)
        injected = torch.randn(activations, size.d_model, generator=generator)
        prompts[:, position] = normalize(injected, float(prompts[0].float().norm(dim=-1).mean())).to(dtype)
    about = f"random Llama of {parameters(model) / 1e6:.0f}M"
    return Task("random", about, model, prompts, position, samples, max_new_tokens)


def stopping(task: Task, mean_length: float) -> Task:
    """The task with stop ids, the same for every sampler: the spread of lengths that random weights do not have.

    The ids are the shortest beginning of a random order of the vocabulary that brings a pilot's mean length down to
    `mean_length`: each step then stops with about the same probability.
    """
    vocab = task.model.config.vocab_size
    rank = torch.randperm(vocab, generator=torch.Generator().manual_seed(1))
    lowest = rank[task.sample(0)[0].cpu()].cummin(1).values  # [sample time]: of the tokens so far

    def shortness(count: int) -> float:
        return -float(((lowest >= count).sum(1) + 1).clamp_max(task.max_new_tokens).float().mean())

    count = bisect.bisect_left(range(1, vocab), -mean_length, key=shortness) + 1
    return replace(task, stop_ids=frozenset((rank < count).nonzero().squeeze(1).tolist()))
