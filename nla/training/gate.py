"""The gate before joint training: does the reconstructor tell an activation's explanation from any other text?

If it reads another row's explanation, or none at all, as well as the right one, rewards are noise: the policy gradient
then moves the verbalizer at random, and texts are destroyed within a few steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nla.errors import TrainingError

OWN = "own"
OTHERS = ("another row's", "empty")
STANDARD_ERRORS = 2.0  # by which each other text must be worse

Errors = dict[str, Float[Tensor, " _"]]  # of the rows of one batch, for each kind of text


@dataclass(frozen=True, slots=True)
class Discrimination:
    """Mean errors by kind of text, and how many standard errors each other text is worse than the right one."""

    rows: int
    error: dict[str, float]
    margin: dict[str, float]

    @classmethod
    def of(cls, batches: Sequence[Errors], total: Callable[[Tensor], Tensor]) -> "Discrimination":
        """`total` sums over ranks."""
        names = (OWN, *OTHERS)
        errors = {name: torch.cat([batch[name].double() for batch in batches]) for name in names}
        worse = {name: errors[name] - errors[OWN] for name in OTHERS}
        sums = [torch.tensor(float(len(errors[OWN])), dtype=torch.float64), *(errors[name].sum() for name in names)]
        sums += [worse[name].square().sum() for name in OTHERS]
        count, *rest = total(torch.stack(sums)).tolist()
        mean = {name: value / max(1.0, count) for name, value in zip(names, rest)}
        margin = {}
        for name, squares in zip(OTHERS, rest[len(names) :]):
            difference = mean[name] - mean[OWN]
            spread = max(squares / max(1.0, count) - difference**2, 0.0)
            margin[name] = difference / max((spread / max(1.0, count)) ** 0.5, 1e-12)
        return cls(int(count), mean, margin)

    def __str__(self) -> str:
        figures = ", ".join(f"{name} {value:.3f}" for name, value in self.error.items())
        margins = ", ".join(f"{name} text {value:.1f}" for name, value in self.margin.items())
        return f"error of the explanation read: {figures} ({self.rows} rows); standard errors by which worse: {margins}"

    def check(self) -> None:
        """Raises TrainingError where the right explanation is not clearly the best."""
        failed = [name for name in OTHERS if not self.margin[name] >= STANDARD_ERRORS]
        if failed:
            raise TrainingError(
                f"stage joint stopped before its first step: the reconstructor reads {' and '.join(failed)} text as "
                f"well as an activation's own explanation ({self}), so rewards would be noise. Train the warm start "
                "further (stage.reconstructor.steps, stage.reconstructor.optimizer.lr, more texts) until its "
                "validation/fve lies well above fve_shuffled and the verbalizer's reading_gap above 0; "
                "stage.joint.gate_rows=0 trains regardless"
            )
