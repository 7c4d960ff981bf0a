"""Reading activations: `Target` against the released reader, on documents of mixed lengths.

    python benchmarks/reading.py

The released reader runs the whole causal LM with `output_hidden_states=True`, 16 documents at a time in the order of
the corpus, padded to the longest. Lengths are spread evenly on a logarithmic scale from 30 to 2048 tokens; each
document is read at its last token, so nothing is saved by positions that come early. Both give the same activations.
"""

import math
import sys
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from models import SIXTY_MILLION, TINY, parameters, random_llama, small_tokenizer
from timing import alternate, options, pin, record
from torch import Tensor
from transformers import PreTrainedModel

from nla.models.target import Target

AT_ONCE = 16  # documents of the released reader
Tokens = Int[Tensor, "document time"]
Mask = Bool[Tensor, "document time"]


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--documents", type=int, default=32)
    arguments = parser.parse_args()
    pin(arguments.core)
    size, count, longest = (TINY, 20, 128) if arguments.quick else (SIXTY_MILLION, arguments.documents, 2048)
    layer = size.blocks // 2 - 1
    target = Target(random_llama(size, longest), small_tokenizer(), layer)
    lengths = mixed_lengths(count, 30, longest)
    tokens, mask = corpus(lengths, size.vocab)
    document, last = torch.arange(count), torch.tensor(lengths) - 1

    def ours() -> Float[Tensor, "document d_model"]:
        return target(tokens, mask, document, last)

    def other() -> Float[Tensor, "document d_model"]:
        return released(target.model, tokens, mask, last, layer)

    torch.testing.assert_close(ours(), other(), atol=1e-3, rtol=1e-3)
    comparison = alternate(lambda: count * bool(len(ours())), lambda: count * bool(len(other())), arguments.repeats)
    model = f"random Llama of {parameters(target.model) / 1e6:.0f}M"
    title = (
        f"reading layer {layer} of {size.blocks}, {model}, {count} documents of {min(lengths)} to {max(lengths)} tokens"
    )
    row = comparison.row("reading", title, f"full forward, batches of {AT_ONCE} in corpus order", "documents")
    figures = {"layer": layer, "tokens": sum(lengths), "tokens_padded_by_the_other": padded(lengths)}
    record("reading", arguments, [row], figures)
    return 0


def mixed_lengths(count: int, shortest: int, longest: int) -> list[int]:
    """As a corpus has them: even on a logarithmic scale, in random order, both ends present."""
    ratio = math.log(longest / shortest)
    evenly = [round(shortest * math.exp(ratio * index / (count - 1))) for index in range(count)]
    return [evenly[index] for index in torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()]


def corpus(lengths: Sequence[int], vocab: int) -> tuple[Tokens, Mask]:
    """Random tokens, right padded."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    return torch.randint(3, vocab, mask.shape, generator=generator).masked_fill(~mask, 0), mask


def padded(lengths: Sequence[int]) -> int:
    """Tokens that the released reader runs."""
    batches = [lengths[first : first + AT_ONCE] for first in range(0, len(lengths), AT_ONCE)]
    return sum(len(batch) * max(batch) for batch in batches)


@torch.no_grad()
def released(
    model: PreTrainedModel, tokens: Tokens, mask: Mask, position: Int[Tensor, " document"], layer: int
) -> Float[Tensor, "document d_model"]:
    """One activation of each document, the way the released code reads them."""
    rows = []
    for first in range(0, len(tokens), AT_ONCE):
        batch = slice(first, first + AT_ONCE)
        time = int(mask[batch].sum(1).max())
        ids, attended = tokens[batch, :time], mask[batch, :time].long()
        output = model(input_ids=ids, attention_mask=attended, output_hidden_states=True, use_cache=False)
        rows.append(output.hidden_states[layer + 1][torch.arange(len(ids)), position[batch]])
    return torch.cat(rows).float()


if __name__ == "__main__":
    sys.exit(main())
