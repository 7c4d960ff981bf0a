"""The reference sampler: Hugging Face's `generate` on prompt embeddings. Slower; `engine` is tested against it."""

from collections.abc import Collection
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from nla.models.sampling.params import SamplingParams


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompt_embeddings: Float[Tensor, "batch prompt d_model"],
    params: SamplingParams,
    *,
    shared: int = 0,
    stop_ids: Collection[int],
    pad_id: int,
    seed: int = 0,
    first_row: int = 0,
    vocabulary: int | None = None,
) -> tuple[Int[Tensor, "sample time"], Bool[Tensor, "sample time"], Float[Tensor, "sample time"]]:
    """As `engine.sample`, with random numbers from torch's own generator, which is restored afterwards.

    `shared`, `params.dtype` and `params.graphs` are unused.
    """
    device = prompt_embeddings.device
    prompts = prompt_embeddings.repeat_interleave(params.group_size, 0)
    choices: dict[str, Any] = {"do_sample": params.temperature != 0}
    if params.temperature != 0:
        choices |= {"temperature": params.temperature, "top_p": params.top_p, "top_k": params.top_k}
    rows = model.config.get_text_config(decoder=True).vocab_size
    if vocabulary is not None and vocabulary < rows:
        choices["suppress_tokens"] = list(range(vocabulary, rows))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed((seed + 1_000_003 * first_row) % 2**63)
        output = model.generate(  # pyright: ignore[reportCallIssue]
            inputs_embeds=prompts,
            attention_mask=torch.ones(prompts.shape[:2], dtype=torch.long, device=device),
            max_new_tokens=params.max_new_tokens,
            eos_token_id=sorted(stop_ids),
            pad_token_id=pad_id,
            output_logits=True,  # raw, before temperature and top-p
            return_dict_in_generate=True,
            **choices,
        )
    tokens = output.sequences
    stopped = torch.isin(tokens, torch.tensor(sorted(stop_ids), device=device))
    mask = stopped.cumsum(1) - stopped.long() == 0
    chosen = [  # step by step: all logits at once would double the memory
        logits.float()[:, :vocabulary].log_softmax(-1).gather(-1, token.unsqueeze(-1)).squeeze(-1)
        for logits, token in zip(output.logits, tokens.unbind(1), strict=True)
    ]
    log_probs = torch.stack(chosen, 1)
    return torch.where(mask, tokens, pad_id), mask, torch.where(mask, log_probs, 0.0)
