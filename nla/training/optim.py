"""Muon for inner matrices, AdamW for the rest, as one optimizer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from nla.errors import ConfigError
from nla.models.parameters import inner_matrices, trainable

MATRICES = "matrices"  # key of a parameter group: indices of its inner matrices


def parameter_groups(
    halves: Mapping[str, nn.Module], settings: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """One group per half: its trainable parameters, and under ``matrices`` the indices of its inner matrices.

    Parameters keep the module's order, by which Lightning finds them again in a checkpoint.

    Args:
        halves: the trained modules by name; each group carries its name under ``name``.
        settings: options of one half alone, such as ``{"reconstructor": {"lr": 1e-3}}``.
    """
    groups = []
    for name, half in halves.items():
        parameters, inner = trainable(half), {id(weight) for weight in inner_matrices(half)}
        matrices = [number for number, parameter in enumerate(parameters) if id(parameter) in inner]
        groups.append({"params": parameters, "name": name, MATRICES: matrices, **settings.get(name, {})})
    return groups


class MuonAdamW(Optimizer):
    """``torch.optim.Muon`` on the inner matrices of each parameter group, ``torch.optim.AdamW`` on all others.

    Small models learn to read an activation faster with Muon. It is one object because Lightning counts one step per
    optimizer: schedules see all groups, and a checkpoint holds both states.

    Args:
        params: the groups of `parameter_groups`; a group's ``lr`` and ``muon_lr`` override the values below.
        lr, betas: of AdamW.
        muon_lr: of Muon; 0 gives all parameters to AdamW, which suits noisy gradients (policy gradient), because Muon
            scales every direction of a gradient to full length.

    Raises ConfigError for a group without the key ``matrices``.
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
                raise ConfigError("MuonAdamW: a parameter group lacks the key 'matrices'; use parameter_groups")
            rate, parameters = group.get("muon_lr", muon_lr), list(group["params"])
            inner = set(group[MATRICES]) if rate > 0 else set[int]()
            named = {key: value for key, value in group.items() if key not in ("params", "lr", "muon_lr", MATRICES)}
            by_muon = [parameter for number, parameter in enumerate(parameters) if number in inner]
            by_adamw = [parameter for number, parameter in enumerate(parameters) if number not in inner]
            assert len(by_muon) == len(inner) and len(by_muon) + len(by_adamw) == len(parameters)
            if by_muon:
                matrices.append({**named, "params": by_muon, "lr": rate})
            if by_adamw:
                others.append({**named, "params": by_adamw, "lr": group.get("lr", lr)})
        self.optimizers: list[Optimizer] = []
        if matrices:
            self.optimizers.append(Muon(matrices, lr=muon_lr, weight_decay=weight_decay))
        if others:
            self.optimizers.append(AdamW(others, lr=lr, weight_decay=weight_decay, betas=(betas[0], betas[1])))
        super().__init__([p for optimizer in self.optimizers for g in optimizer.param_groups for p in g["params"]], {})
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        self._share()

    def _share(self) -> None:
        """Both optimizers work on this object's groups and state, so that it can be used like any optimizer."""
        first = 0
        for optimizer in self.optimizers:
            last = first + len(optimizer.param_groups)
            optimizer.param_groups, optimizer.state = self.param_groups[first:last], self.state
            first = last

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()
