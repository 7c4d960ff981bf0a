"""Muon for inner matrices, AdamW for the rest, as one optimizer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from nla.errors import ConfigError
from nla.models.parameters import split_trainable

MATRICES = "matrices"  # key of a parameter group: whether it holds inner matrices


def parameter_groups(
    halves: Mapping[str, nn.Module], settings: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The groups of an optimizer: of each half its inner matrices, then its other parameters.

    Args:
        halves: what is trained, by name, which each group carries under ``name``.
        settings: options that one half has to itself, such as ``{"reconstructor": {"lr": 1e-3}}``.
    """
    groups = [
        {"params": parameters, "name": name, MATRICES: matrices, **settings.get(name, {})}
        for name, half in halves.items()
        for matrices, parameters in split_trainable(half).items()
    ]
    return [group for group in groups if group["params"]]


class MuonAdamW(Optimizer):
    """``torch.optim.Muon`` on the groups of inner matrices, ``torch.optim.AdamW`` on all others.

    Small models learn to read an activation faster with Muon. Lightning counts a step for each optimizer
    it is given, hence one object: schedules see all groups, a checkpoint holds both states.

    Args:
        params: the groups of `parameter_groups`; a group's ``lr`` and ``muon_lr`` override the values below.
        lr, betas: of AdamW.
        muon_lr: of Muon; 0 leaves all to AdamW, which noisy gradients (policy gradient) want, since Muon turns every
            direction of a gradient to full length.

    Raises ConfigError for a group that does not say what it holds.
    """

    def __init__(
        self,
        params: list[dict[str, Any]],
        lr: float,
        muon_lr: float,
        weight_decay: float,
        betas: Sequence[float],
    ) -> None:
        matrices, others = [], []
        for group in params:
            if MATRICES not in group:
                raise ConfigError("MuonAdamW: a parameter group lacks the key 'matrices'; make it by parameter_groups")
            rate = group.get("muon_lr", muon_lr)
            muon = group[MATRICES] and rate > 0
            named = {key: value for key, value in group.items() if key not in ("lr", "muon_lr")}
            (matrices if muon else others).append({**named, "lr": rate if muon else group.get("lr", lr)})
        self.parts: list[Optimizer] = []
        if matrices:
            self.parts.append(Muon(matrices, lr=muon_lr, weight_decay=weight_decay))
        if others:
            self.parts.append(AdamW(others, lr=lr, weight_decay=weight_decay, betas=(betas[0], betas[1])))
        super().__init__([p for part in self.parts for g in part.param_groups for p in g["params"]], {})
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        self._share()

    def _share(self) -> None:
        """Both parts work on this object's groups and state, which are those of any optimizer."""
        first = 0
        for part in self.parts:
            last = first + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[first:last], self.state
            first = last

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()
