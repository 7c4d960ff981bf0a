"""The rollouts that the engine is measured against: Hugging Face's `generate` on prompt embeddings, as it comes."""

from collections.abc import Collection
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

Sampled = tuple[Int[Tensor, "sample time"], Bool[Tensor, "sample time"]]


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Float[Tensor, "batch prompt d_model"],
    samples: int,
    stop_ids: Collection[int],
    pad_id: int,
    max_new_tokens: int,
) -> Sampled:
    """All samples of all prompts in one batch: tokens, and a mask through the first stop token.

    No log-probs are asked for: the trained forward gives them.
    """
    return _generate(model, prompts.repeat_interleave(samples, 0), 1, stop_ids, pad_id, max_new_tokens)


@torch.no_grad()
def generate_each(
    model: PreTrainedModel,
    prompts: Float[Tensor, "batch prompt d_model"],
    samples: int,
    stop_ids: Collection[int],
    pad_id: int,
    max_new_tokens: int,
) -> Sampled:
    """One call for each activation with `num_return_sequences`, as nanoNLA does."""
    parts = [_generate(model, prompt.unsqueeze(0), samples, stop_ids, pad_id, max_new_tokens) for prompt in prompts]
    longest = max(tokens.shape[1] for tokens, _ in parts)
    padded = [(longest - tokens.shape[1], tokens, mask) for tokens, mask in parts]
    return (
        torch.cat([F.pad(tokens, (0, short), value=pad_id) for short, tokens, _ in padded]),
        torch.cat([F.pad(mask, (0, short), value=False) for short, _, mask in padded]),
    )


def _generate(
    model: PreTrainedModel,
    prompts: Float[Tensor, "row prompt d_model"],
    copies: int,
    stop_ids: Collection[int],
    pad_id: int,
    max_new_tokens: int,
) -> Sampled:
    generator: Any = model
    tokens: Tensor = generator.generate(
        inputs_embeds=prompts,
        attention_mask=torch.ones(prompts.shape[:2], dtype=torch.long, device=prompts.device),
        num_return_sequences=copies,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(stop_ids),
        pad_token_id=pad_id,
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
    )
    stopped = torch.isin(tokens, torch.tensor(sorted(stop_ids), device=tokens.device))
    return tokens, stopped.cumsum(1) - stopped.long() == 0
