"""Ridge regression from sums: one pass over any number of rows, in float64, solved for many penalties at once.

Sums of several ranks add up, so a fit over all ranks is that of one process.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # in units of the mean of the diagonal of X'X


@dataclass(slots=True)
class NormalEquations:
    """``X'X`` and ``X'Y`` of the rows so far. No intercept: a constant input is one if it is wanted."""

    gram: Float[Tensor, "input input"]
    moment: Float[Tensor, "input output"]
    rows: int = 0

    @classmethod
    def empty(cls, inputs: int, outputs: int) -> "NormalEquations":
        return cls(torch.zeros(inputs, inputs, dtype=torch.float64), torch.zeros(inputs, outputs, dtype=torch.float64))

    def add(self, inputs: Float[Tensor, "row input"], outputs: Float[Tensor, "row output"]) -> None:
        x, y = inputs.cpu().double(), outputs.cpu().double()
        self.gram += x.T @ x
        self.moment += x.T @ y
        self.rows += len(x)

    def solve(self, penalties: Sequence[float] = PENALTIES) -> list[Float[Tensor, "output input"]]:
        """The weights for each penalty: ``W`` with ``y = W x``, as a linear layer without bias holds them.

        A penalty is relative: it is multiplied by the mean of the diagonal of ``X'X``.
        """
        values, vectors = torch.linalg.eigh(self.gram)
        rotated = vectors.T @ self.moment
        unit = self.gram.diagonal().mean()
        return [(vectors @ (rotated / (values.clamp_min(0) + penalty * unit).unsqueeze(1))).T for penalty in penalties]
