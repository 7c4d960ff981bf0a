"""What can be seen in sampled explanations without reading them: length, form, repetition."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nla.types import Completions


def text_metrics(completions: Completions, cap: int) -> dict[str, Float[Tensor, ""]]:
    """Mean length in tokens (the stop token included), shares well-formed and as long as `cap`, repetition."""
    lengths = completions.mask.sum(1)
    return {
        "explanation_tokens": lengths.float().mean(),
        "well_formed": completions.well_formed.float().mean(),
        "at_cap": (lengths >= cap).float().mean(),
        "repetition": repeated_windows(completions.tokens, completions.mask),
    }


def repeated_windows(
    tokens: Int[Tensor, "sample time"], mask: Bool[Tensor, "sample time"], width: int = 4
) -> Float[Tensor, ""]:
    """Share of a sample's runs of `width` tokens that repeat an earlier one of the same sample.

    Ordinary text stays near 0; a policy that has fallen into a loop comes close to 1.
    """
    if tokens.shape[1] < width:
        return torch.zeros((), device=tokens.device)
    runs = tokens.unfold(1, width, 1)
    inside = mask.unfold(1, width, 1).all(-1)
    keys = torch.zeros_like(runs[..., 0])
    for place in range(width):  # a hash that wraps around: two different runs meet with a chance of 2^-60
        keys = keys * 6364136223846793005 + runs[..., place] + 1
    fillers = torch.arange(keys.shape[1], device=keys.device).expand_as(keys)
    ordered = torch.where(inside, keys, fillers).sort(1).values
    repeated = (ordered[:, 1:] == ordered[:, :-1]).sum()
    return repeated / inside.sum().clamp_min(1)
