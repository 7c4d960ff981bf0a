"""Log-probs of response tokens with their gradients: three ways to the same numbers.

python benchmarks/log_probs.py
"""

import functools
import sys
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from timing import alternate, options, pin, record
from torch import Tensor
from torch.nn import functional as F

Head = Callable[[Tensor, Tensor, Tensor], Tensor]


def cross_entropy(hidden: Tensor, weight: Tensor, token: Tensor) -> Float[Tensor, " token"]:
    """What `Verbalizer.forward` does."""
    return F.cross_entropy(F.linear(hidden, weight).float(), token, reduction="none")


def gathered(hidden: Tensor, weight: Tensor, token: Tensor) -> Float[Tensor, " token"]:
    logits = F.linear(hidden, weight).float()
    return logits.logsumexp(-1) - logits.gather(1, token.unsqueeze(1)).squeeze(1)


def chunked(hidden: Tensor, weight: Tensor, token: Tensor) -> Float[Tensor, " token"]:
    choices = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(hidden, weight, token, reduction="none", options=choices)


def run(way: Head, hidden: Tensor, weight: Tensor, token: Int[Tensor, " token"]) -> float:
    hidden.grad = weight.grad = None
    way(hidden, weight, token).sum().backward()
    return 1.0


def main() -> int:
    parser = options(__doc__)
    arguments = parser.parse_args()
    pin(arguments.core)
    rows = []
    shapes = ((50, 64, 32),) if arguments.quick else ((4450, 1792, 192), (1000, 32768, 640))
    for tokens, vocab, d_model in shapes:
        torch.manual_seed(0)
        hidden = torch.randn(tokens, d_model, requires_grad=True)
        weight = (0.05 * torch.randn(vocab, d_model)).requires_grad_(True)
        token = torch.randint(vocab, (tokens,))
        inputs = (hidden, weight, token)
        for name, other in (("gather minus logsumexp", gathered), ("linear_cross_entropy, chunked", chunked)):
            torch.testing.assert_close(cross_entropy(*inputs), other(*inputs), atol=1e-4, rtol=1e-4)
            ours, alternative = (functools.partial(run, way, *inputs) for way in (cross_entropy, other))
            comparison = alternate(ours, alternative, arguments.repeats)
            title = f"log-probs with gradients, {tokens} tokens, vocabulary {vocab}, width {d_model}"
            rows.append(comparison.row(f"log_probs_{vocab}_{other.__name__}", title, name, "s"))
    record("log_probs", arguments, rows, {})
    return 0


if __name__ == "__main__":
    sys.exit(main())
