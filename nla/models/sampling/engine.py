"""The decode loop for prompts that differ in one embedding: prefills shared tokens once, drops rows that have ended.

What precedes the marker is run once, the rest of the prompt once for each activation; its samples attend to both in
place (`attention.py`). A sample depends only on (seed, row, step), not on the rest of the batch, up to rounding.
Prompts have one length, hence no mask.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from nla.models.backbone import DTYPES, body, depth, embed, head_logits, truncated
from nla.models.lora import ACTIVE, adapted_matrices, merged_matrix
from nla.models.sampling.attention import Prefix, StaticCache, shared_attention
from nla.models.sampling.graphs import GraphedStep, Step
from nla.models.sampling.params import SamplingParams

COMPACT_BELOW = 0.75  # compact the cache when less than this share of rows is alive: the copy costs about one step
BUCKET, ROWS = 32, 16  # of a recorded step: tokens by which buffers grow, and the multiple of its number of rows
LOOK_EVERY = {"cpu": 1}  # steps between counts of live rows; elsewhere 8, since a count waits for the device


def uniforms(seed: int, rows: int, steps: int, first_row: int = 0) -> Float[Tensor, "steps rows"]:
    """Numbers in [0, 1) that are a hash of (seed, row, step): splitmix64 over a counter."""

    def mix(z: np.ndarray) -> np.ndarray:
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        key = mix(np.full(1, seed % 2**64, dtype=np.uint64) + golden)
        row = mix(np.arange(first_row, first_row + rows, dtype=np.uint64) * golden + key)
        step = np.arange(1, steps + 1, dtype=np.uint64)[:, None] * golden
        bits = mix(row[None, :] + step) >> np.uint64(40)
    return torch.from_numpy(bits.astype(np.float32) / np.float32(2**24))


def restrict(logits: Float[Tensor, "sample vocab"], top_p: float, top_k: int) -> Float[Tensor, "sample vocab"]:
    """Keep the `top_k` likeliest tokens (0: all), then the smallest set that holds `top_p` of the probability."""
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k, dim=-1).values[:, -1:], -torch.inf)
    if top_p < 1:
        ordered, index = logits.sort(dim=-1, descending=True)
        probability = ordered.softmax(-1)
        outside = probability.cumsum(-1) - probability >= top_p
        logits = logits.masked_fill(outside.scatter(-1, index, outside), -torch.inf)
    return logits


def choose(
    logits: Float[Tensor, "sample vocab"],
    uniform: Float[Tensor, " sample"],
    params: SamplingParams,
) -> tuple[Int[Tensor, " sample"], Float[Tensor, " sample"]]:
    """Next tokens and their log-probs under the raw logits.

    Greedy at temperature 0, else the inverse cumulative distribution at `uniform`.
    """
    log_sum = logits.logsumexp(-1, keepdim=True)
    if params.temperature == 0:
        token = logits.argmax(-1)
    else:
        plain = params.temperature == 1 and params.top_p == 1 and params.top_k == 0
        scaled = logits / params.temperature
        chosen = (logits - log_sum).exp() if plain else restrict(scaled, params.top_p, params.top_k).softmax(-1)
        cumulative = chosen.cumsum(-1)
        point = uniform.unsqueeze(1) * cumulative[:, -1:]  # the sum is 1 only up to rounding
        token = torch.searchsorted(cumulative, point, right=True).squeeze(1).clamp_max(logits.shape[-1] - 1)
    return token, (logits.gather(1, token.unsqueeze(1)) - log_sum).squeeze(1)


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
    """`params.group_size` answers to each prompt, contiguous: tokens, mask (through the first stop token), log-probs.

    Log-probs are those of the sampled tokens under the raw logits at any temperature. `shared` is the number of
    leading tokens that all prompts have in common. `first_row` continues the numbering of rows when a large request is
    split into chunks. `vocabulary`: ids from there on are no tokens and are never drawn; None: all ids are tokens. With
    `params.graphs`, shapes of buffers and batch change by buckets only, and on a GPU the decode step is recorded and
    replayed (`graphs.py`). Set the model to evaluation mode before.
    """
    decoder, device = body(model), prompt_embeddings.device
    batch, length = prompt_embeddings.shape[:2]
    samples, max_new_tokens = params.group_size, params.max_new_tokens
    dtype, graphs = DTYPES[params.dtype] if params.dtype else None, params.graphs
    rows = batch * samples
    random = uniforms(seed, rows, max_new_tokens, first_row).to(device)
    stops = torch.tensor(sorted(stop_ids), device=device)
    if graphs is None:  # a model spread over ranks gathers its weights inside the step
        graphs = device.type == "cuda" and not any(isinstance(weight, DTensor) for weight in model.parameters())
    step: Step = GraphedStep(advance) if graphs and device.type == "cuda" else advance
    steps_between_counts = LOOK_EVERY.get(device.type, 8)
    tokens = torch.full((rows, max_new_tokens), pad_id, device=device)
    log_probs = torch.zeros(rows, max_new_tokens, device=device)
    mask = torch.zeros(rows, max_new_tokens, dtype=torch.bool, device=device)
    with shared_attention(decoder), prepared(model, dtype):
        prompts = prompt_embeddings if dtype is None else prompt_embeddings.to(dtype)
        hidden, prefixes = prefill(decoder, prompts, samples, shared)
        logits = head_logits(model, hidden)[:, :vocabulary].repeat_interleave(samples, 0)
        live = Rows(decoder, rows, length, max_new_tokens, prefixes, static=graphs)
        for number in range(max_new_tokens):
            row, alive = live.row, live.alive
            token, log_prob = choose(logits, random[number, row], params)
            tokens[row, number] = torch.where(alive, token, pad_id)
            log_probs[row, number] = torch.where(alive, log_prob, 0.0)
            mask[row, number] = alive
            live.alive = alive & ~torch.isin(token, stops)
            if number + 1 == max_new_tokens:
                break
            if number % steps_between_counts == 0:
                kept = live.compact()
                if kept is None:
                    break
                token = token[kept]
            embeddings = embed(decoder, token.unsqueeze(1)).to(prompts.dtype)
            logits = head_logits(model, live.step(step, embeddings, number))[:, :vocabulary]
    time = int(mask.any(0).sum())
    return tokens[:, :time], mask[:, :time], log_probs[:, :time]


@contextmanager
def prepared(model: PreTrainedModel, dtype: torch.dtype | None) -> Iterator[None]:
    """Inside the context the weights have this type, and on a CPU matrices are stored transposed.

    With an unchanged type the numbers are the same. A product of few rows with a matrix in fp32 is up to twice as fast
    that way (MKL), and a CPU without matrix units for bf16 computes faster in fp32. Under autocast matrices have its
    type, else a frozen one would be cast again in every step. The copy of a matrix takes in its adapter, so a step
    costs what it costs without adapters. Pointers are swapped, nothing is written, so the end restores every bit; the
    copies cost less than a decode step. No copy is made without a gain, nor of weights that are sharded over ranks and
    gathered block by block.
    """
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    adapted = adapted_matrices(model)
    before: list[tuple[Tensor, Tensor]] = []
    merged: list[Any] = []
    try:
        for weight in model.parameters():
            if isinstance(weight, DTensor):
                continue
            data, matrix = weight.data, id(weight) in matrices
            to = dtype or (autocast_dtype(data) if matrix else None)
            cast = data if to is None or not data.is_floating_point() else data.to(to)
            transposed = matrix and cast.device.type == "cpu" and cast.dtype == torch.float32
            if (transposed or cast is not data) and id(weight) in adapted:
                layer = adapted[id(weight)]
                cast = merged_matrix(layer, cast.dtype)
                layer.merged_adapters.append(ACTIVE)
                merged.append(layer)
            if transposed:
                cast = cast.t().contiguous().t()
            if cast is not data:
                before.append((weight, data))
                weight.data = cast
        yield
    finally:
        for layer in merged:
            layer.merged_adapters.remove(ACTIVE)
        for weight, data in before:
            weight.data = data


def autocast_dtype(data: Tensor) -> torch.dtype | None:
    """The type in which autocast multiplies these weights; None outside of it, and for weights that it leaves alone."""
    device = data.device.type
    return torch.get_autocast_dtype(device) if data.is_floating_point() and torch.is_autocast_enabled(device) else None


class Rows:
    """The samples still being written: which they are, which are alive, and what they attend to.

    Args:
        before: tokens of the prompt.
        most: tokens of an answer, at most.
        static: shapes change by buckets only, for a recorded step.
    """

    def __init__(
        self, decoder: PreTrainedModel, rows: int, before: int, most: int, prefixes: list[Prefix], static: bool
    ) -> None:
        device = prefixes[-1].keys[0].device
        place = torch.zeros(1, dtype=torch.long, device=device) if static else None
        self.decoder, self.before, self.most, self.prefixes = decoder, before, most, prefixes
        self.cache = StaticCache(depth(decoder), min(BUCKET, most) if static else most, before, place)
        self.row = torch.arange(rows, device=device)  # the sample that each row of the batch is
        self.alive = torch.ones(rows, dtype=torch.bool, device=device)

    def compact(self) -> Int[Tensor, " kept"] | slice | None:
        """Drop rows that have ended, if enough have. Returns which rows are left; None if no row is alive."""
        living, rows = int(self.alive.sum()), len(self.row)
        if living == 0:
            return None
        size = living if self.cache.place is None else -(-living // ROWS) * ROWS
        if size >= COMPACT_BELOW * rows:
            return slice(None)
        kept = self.alive.long().argsort(descending=True, stable=True)[:size].sort().values  # live rows, and filler
        self.cache.change(kept, self.cache.size)
        self.row, self.alive = self.row[kept], self.alive[kept]
        self.prefixes = [prefix.at(self.row) for prefix in self.prefixes]
        return kept

    def step(self, step: Step, embeddings: Float[Tensor, "row 1 d_model"], number: int) -> Float[Tensor, "row d_model"]:
        """The hidden state after one more token in each row, the `number`-th."""
        if self.cache.place is not None:
            if number == self.cache.size:
                self.cache.change(slice(None), min(self.cache.size + BUCKET, self.most))
            self.cache.place.fill_(number)
        position = torch.full((1, 1), self.before + number, device=embeddings.device)
        return step(self.decoder, embeddings, self.cache, self.prefixes, position)


def prefill(
    decoder: PreTrainedModel, prompts: Float[Tensor, "batch prompt d_model"], samples: int, shared: int
) -> tuple[Float[Tensor, "batch d_model"], list[Prefix]]:
    """The last hidden state of each prompt, and keys and values: shared ones once, the rest for each prompt."""
    length = prompts.shape[1]
    prefixes: list[Prefix] = []
    hidden = prompts[:, -1]
    for embeddings, start, end in ((prompts[:1], 0, shared), (prompts, shared, length)):
        if start < end:
            cache = StaticCache(depth(decoder), end - start, before=start)
            hidden = decoder(
                inputs_embeds=embeddings[:, start:end],
                past_key_values=cache,
                position_ids=torch.arange(start, end, device=prompts.device).unsqueeze(0),
                use_cache=True,
                prefixes=prefixes,
            ).last_hidden_state[:, -1]
            prefixes = [*prefixes, cache.as_prefix(samples if end == length else 1)]
    return hidden, prefixes


@torch.no_grad()
def misfit(model: PreTrainedModel, prompt: Float[Tensor, "1 prompt d_model"], shared: int) -> str | None:
    """Why this model cannot be sampled here, or None: one prompt through both paths, its last token as a decode step.

    What the shared attention does not support (attention sinks, latent or linear attention, other caches) shows as a
    difference or an exception. Only the first blocks run, at least one of each kind, so it costs almost nothing.
    """
    full, length = body(model), prompt.shape[1]
    decoder = first_of_each_kind(full)
    reference = decoder(inputs_embeds=prompt, use_cache=False).last_hidden_state[:, -1].float()
    try:
        with shared_attention(full), shared_attention(decoder):  # the view has a config of its own
            _, prefixes = prefill(decoder, prompt[:, :-1], 1, min(shared, length - 1))
            last = torch.full((1, 1), length - 1, device=prompt.device)
            shared_hidden = advance(decoder, prompt[:, -1:], StaticCache(depth(decoder), 1, length - 1), prefixes, last)
    except Exception as error:  # a model's own code raises anything for unknown arguments
        return f"{type(error).__name__}: {error}"
    difference = float((shared_hidden.float() - reference).norm() / reference.norm())
    allowed = 1e-3 if prompt.dtype == torch.float32 and not torch.is_autocast_enabled(prompt.device.type) else 0.1
    if difference < allowed:
        return None
    return f"its hidden state differs by {difference:.2g} of its norm, allowed is {allowed}"


def first_of_each_kind(decoder: PreTrainedModel) -> PreTrainedModel:
    """A view of the first blocks, up to the first of the last kind of attention; two if the config names none."""
    kinds = list(getattr(decoder.config, "layer_types", None) or ())
    last = max((kinds.index(kind) for kind in set(kinds)), default=1)
    return truncated(decoder, min(max(last, 1), depth(decoder) - 1))


def advance(
    decoder: PreTrainedModel,
    embeddings: Float[Tensor, "row 1 d_model"],
    cache: StaticCache,
    prefixes: list[Prefix],
    position: Int[Tensor, "1 1"],
) -> Float[Tensor, "row d_model"]:
    """The hidden state of one more token in each row."""
    return decoder(
        inputs_embeds=embeddings,
        past_key_values=cache,
        position_ids=position,
        use_cache=True,
        prefixes=prefixes,
        place=cache.place,
    ).last_hidden_state[:, -1]
