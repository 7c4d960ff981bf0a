"""A tiny pair and numbers that tell two of them apart."""

import torch

from nla.models.pair import NLA

TEXTS = ["It rains in the town.", "a", "Tom walks."]


def vectors(count: int = 4) -> torch.Tensor:
    return 3 * torch.randn(count, 32, generator=torch.Generator().manual_seed(0))


def shaken(nla: NLA) -> NLA:
    """As after some training: every trainable weight a little off."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in nla.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return nla


def numbers(nla: NLA) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, mask = nla.verbalizer.respond(TEXTS)
    return nla.verbalizer(vectors(3), tokens, mask).detach(), nla.reconstruct(TEXTS)


LORA = {"rank": 2, "alpha": 4.0, "dropout": 0.0}
