"""Statistics of sampled explanations: length, form, repetition."""

from jaxtyping import Float
from torch import Tensor

from nla.core.records import Completions
from nla.training.rewards import repeated_runs


def text_metrics(completions: Completions, cap: int) -> dict[str, Float[Tensor, ""]]:
    """Mean length in tokens (the stop token included), shares well-formed and as long as `cap`, repetition."""
    lengths = completions.mask.sum(1)
    repeated, runs = repeated_runs(completions.tokens, completions.mask)
    return {
        "explanation_tokens": lengths.float().mean(),
        "well_formed": completions.well_formed.float().mean(),
        "at_cap": (lengths >= cap).float().mean(),
        "repetition": (repeated / runs.clamp_min(1)).mean(),
    }
