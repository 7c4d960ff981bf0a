"""How much of a text had been read: rows by their number of ordinary tokens up to the one that is read."""

from itertools import pairwise

from jaxtyping import Bool, Int
from torch import Tensor

FIRST = (1, 4, 8, 16, 32, 64, 128)  # least number of each range


def tokens_read(read: Int[Tensor, " batch"]) -> dict[str, Bool[Tensor, " batch"]]:
    """The rows of each range, `1-3`, `4-7`, ..., `128+`; ranges without rows are left out."""
    ranges = {f"{first}-{after - 1}": (read >= first) & (read < after) for first, after in pairwise(FIRST)}
    ranges[f"{FIRST[-1]}+"] = read >= FIRST[-1]
    return {name: rows for name, rows in ranges.items() if bool(rows.any())}
