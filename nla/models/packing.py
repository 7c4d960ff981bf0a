"""Rows of several samples for the trained forward pass: their prompt once, then the samples, separated by the mask.

    prompt | sample 0 | sample 1 | ... | padding

Each sample attends to the prompt and to itself, at the positions it would have alone. So log-probs equal those of
separate rows up to rounding, while the prompt is run once and no sample is padded to the longest. Samples of one
activation share its whole prompt. Answers to different activations share what precedes the marker; the rest of the
prompt is part of the sample.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Packing:
    """Where everything is. `row`, `column`: of each fed token, in the order of `tokens[:, :-1][fed]`."""

    length: int
    fed: Bool[Tensor, "sample fed_time"]  # tokens whose successor is asked for
    row: Int[Tensor, " fed"]
    column: Int[Tensor, " fed"]
    predictor_row: Int[Tensor, " asked"]  # where each token of the mask is predicted
    predictor_column: Int[Tensor, " asked"]
    position: Int[Tensor, "batch length"]
    segment: Int[Tensor, "batch length"]  # 0 the prompt, 1.. the samples, -1 padding

    def first(self) -> Int[Tensor, " sample"]:
        """Where each sample begins in `row` and `column`; each must have a fed token."""
        lengths = self.fed.sum(1)
        return lengths.cumsum(0) - lengths

    def inputs(
        self, prompt: Float[Tensor, "batch prompt d_model"], fed: Float[Tensor, "fed d_model"]
    ) -> Float[Tensor, "batch length d_model"]:
        """The embeddings in their places, zeros for padding."""
        batch, start, d_model = prompt.shape
        rows = torch.cat([prompt, prompt.new_zeros(batch, self.length - start, d_model)], dim=1)
        return rows.index_put((self.row, self.column), fed)

    def attention_mask(self, decoder: PreTrainedModel, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
        """What each token may attend to, in the form that the decoder takes."""
        return shared_prefix_mask(self.segment, self.position, decoder, dtype)


def shared_prefix_mask(
    segment: Int[Tensor, "batch length"],
    position: Int[Tensor, "batch length"],
    decoder: PreTrainedModel,
    dtype: torch.dtype,
) -> Tensor | dict[str, Tensor]:
    """Each token attends causally to segment 0, the prefix, and to its own: one mask, or one per kind of layer."""
    same_segment = segment.unsqueeze(2) == segment.unsqueeze(1)
    prompt = (segment == 0).unsqueeze(1)
    length = segment.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment.device).tril()
    # padding attends to the prompt: a query without any key would give NaN
    allowed = (causal & (prompt | same_segment)).unsqueeze(1)
    config = decoder.config
    window = getattr(config, "sliding_window", None)
    near = allowed
    if window is not None:
        near = allowed & (position.unsqueeze(2) - position.unsqueeze(1) < window).unsqueeze(1)
    eager = config._attn_implementation == "eager"  # adds its mask to the scores
    full, near = (_additive(mask, dtype) if eager else mask for mask in (allowed, near))
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds:
        return near  # Mistral: every layer has the window
    if kinds == {"full_attention"}:
        return full
    return {"full_attention": full, "sliding_attention": near}


PAIR_COST = 0.5  # of a query-key pair, relative to as many operations in a matrix product (measured on a CPU)


def samples_per_row(group: int, prompt: int, time: int, d_model: int) -> int:
    """How many of a group's samples share a row: more of them save prompts but waste pairs that the mask hides.

    A token costs about 12 d^2 multiplications in a block's matrices, a query-key pair 2 d in its attention.
    """

    def cost(together: int) -> float:
        tokens, pairs = prompt / together + time, (prompt + together * time) ** 2 / together
        return 6 * d_model * tokens + PAIR_COST * pairs

    return min((count for count in range(1, group + 1) if group % count == 0), key=cost)


def shared_layout(samples: int, group: int, prompt: int, marker: int, time: int, d_model: int) -> tuple[int, int]:
    """How many tokens of the prompt samples can share, and how many samples to put into one row.

    Args:
        group: samples per activation; they share the whole prompt. Answers to different activations share what comes
            before the marker; the rest of the prompt is then part of the sample.
        prompt: tokens of the prompt.
        marker: the marker's index among them.
        time: tokens of an answer.
    """
    shared = prompt if group > 1 else marker
    if shared == 0:
        return 0, 1
    return shared, samples_per_row(group if group > 1 else samples, shared, prompt - shared + time, d_model)


def pack(mask: Bool[Tensor, "sample time"], batch: int, prompt: int) -> Packing:
    """Lay out `batch` groups of equally many samples, each behind its prompt of `prompt` tokens.

    Args:
        mask: tokens whose log-probs are wanted; True from a sample's first token through its last.
    """
    samples, time = mask.shape
    group = samples // batch
    device = mask.device
    lengths = (mask.sum(1) - 1).clamp_min(0)
    ends = lengths.view(batch, group).cumsum(1)
    start = prompt + (ends - lengths.view(batch, group)).view(-1, 1)
    length = prompt + int(ends.max())
    step = torch.arange(time, device=device)
    fed = step[:-1] < lengths.unsqueeze(1)
    row = torch.arange(batch, device=device).repeat_interleave(group).unsqueeze(1)
    column = start + step
    rows, columns = row.expand(-1, time - 1)[fed], column[:, :-1][fed]
    position = torch.zeros(batch, length, dtype=torch.long, device=device)
    position[:, :prompt] = torch.arange(prompt, device=device)
    position[rows, columns] = (prompt + step[:-1]).expand(samples, -1)[fed]
    segment = torch.full((batch, length), -1, device=device)
    segment[:, :prompt] = 0
    number = torch.arange(1, group + 1, device=device).repeat(batch).unsqueeze(1)
    segment[rows, columns] = number.expand(-1, time - 1)[fed]
    predictor = torch.where(step == 0, prompt - 1, column - 1)
    return Packing(length, fed, rows, columns, row.expand(-1, time)[mask], predictor[mask], position, segment)


def _additive(mask: Bool[Tensor, "*rows length"], dtype: torch.dtype) -> Float[Tensor, "*rows length"]:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
