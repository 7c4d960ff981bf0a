"""The auxiliary loss that makes a tiny model carry the gist of a text at one layer.

A large model carries what its text is about by itself; one of two million parameters fetches facts only when it
needs them, and its activations hold little but the last word. So, while it is pretrained, a linear head on one
layer's normalised activation predicts the bag of the next tokens, rare ones weighing most. The head is thrown away.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class GistLoss(nn.Module):
    """Cross-entropy between a linear prediction and the weighted bag of the next `horizon` tokens.

    Args:
        frequency: `[vocab]` relative frequency of each token; its weight is `min(1, rare / frequency)`.
        share: of the positions that are scored, drawn again at each call.
    """

    weight: Tensor

    def __init__(
        self, d_model: int, frequency: Float[Tensor, " vocab"], *, horizon: int, rare: float, share: float
    ) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(d_model)
        self.head = nn.Linear(d_model, len(frequency), bias=False)
        self.horizon, self.share = horizon, share
        self.register_buffer("weight", (rare / frequency.clamp_min(1e-9)).clamp_max(1.0) * (frequency > 0))

    def forward(
        self,
        activation: Float[Tensor, "batch time d_model"],
        tokens: Int[Tensor, "batch time"],
        mask: Bool[Tensor, "batch time"],
    ) -> Float[Tensor, ""]:
        chosen = (torch.rand(tokens.shape) < self.share) & mask
        row, position = chosen.nonzero(as_tuple=True)
        following = position[:, None] + torch.arange(1, self.horizon + 1)
        inside = following < tokens.shape[1]
        following = following.clamp_max(tokens.shape[1] - 1)
        ids = tokens[row[:, None], following]
        weight = self.weight[ids] * (inside & mask[row[:, None], following])
        bag = torch.zeros(len(row), len(self.weight)).scatter_add_(1, ids, weight)
        total = bag.sum(1)
        log_probs = F.log_softmax(self.head(self.norm(activation[row, position])).float(), dim=-1)
        scored = total > 0
        if not bool(scored.any()):  # nothing drawn from a very small batch: a mean over nothing would be NaN
            return log_probs.sum() * 0.0
        return -((bag * log_probs).sum(1) / total.clamp_min(1e-6))[scored].mean()
