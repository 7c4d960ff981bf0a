"""Muon for matrices, AdamW for the rest, as one optimizer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer


class MuonAdamW(Optimizer):
    """``torch.optim.Muon`` on the matrices of each parameter group, ``torch.optim.AdamW`` on the rest.

    Small models learn to read an activation faster with Muon. Lightning counts a step for each optimizer
    it is given, hence one object: schedules see all groups, a checkpoint holds both states.

    Args:
        params: parameter groups; a group's ``lr`` and ``muon_lr`` override the defaults.
        lr: of AdamW (embeddings, norms). muon_lr: of Muon (every other matrix); 0 leaves all to AdamW, which
            noisy gradients (policy gradient) want, since Muon turns every direction of a gradient to full length.
        embeddings: how many rows make a matrix an embedding or output table, which AdamW keeps.
    """

    def __init__(
        self,
        params: list[dict[str, Any]],
        lr: float = 1e-3,
        muon_lr: float = 1e-2,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.98),
        embeddings: int = 1024,
    ) -> None:
        matrices, others = [], []
        for group in params:
            parameters = list(group["params"])
            rate = group.get("muon_lr", muon_lr)
            inner = [p for p in parameters if rate > 0 and p.ndim == 2 and p.shape[0] < embeddings]
            chosen = {id(p) for p in inner}
            rest = [p for p in parameters if id(p) not in chosen]
            named = {key: value for key, value in group.items() if key not in ("params", "lr", "muon_lr")}
            if inner:
                matrices.append({**named, "params": inner, "lr": rate})
            if rest:
                others.append({**named, "params": rest, "lr": group.get("lr", lr)})
        self.parts: list[Optimizer] = []
        if matrices:
            self.parts.append(Muon(matrices, lr=muon_lr, weight_decay=weight_decay))
        if others:
            self.parts.append(AdamW(others, lr=lr, weight_decay=weight_decay, betas=betas))
        super().__init__([p for part in self.parts for g in part.param_groups for p in g["params"]], {})
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        self._share()

    def _share(self) -> None:
        """Both parts work on this object's groups and state, which are those of any optimizer."""
        place = 0
        for part in self.parts:
            part.param_groups = self.param_groups[place : place + len(part.param_groups)]
            part.state = self.state
            place += len(part.param_groups)

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
