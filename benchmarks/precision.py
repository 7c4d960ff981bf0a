"""Is a lower matmul precision worth it on this CPU? fp32 products at "highest" against "medium", with the error made.

python benchmarks/precision.py
"""

import functools
import sys

import torch
from timing import Row, alternate, options, pin, record
from torch import Tensor
from torch.nn import functional as F


def product(precision: str, left: Tensor, weight: Tensor, times: int) -> float:
    torch.set_float32_matmul_precision(precision)
    for _ in range(times):
        F.linear(left, weight)
    torch.set_float32_matmul_precision("highest")
    return float(times)


def main() -> int:
    arguments = options(__doc__).parse_args()
    pin(arguments.core)
    rows: list[Row] = []
    figures: dict[str, float] = {}
    shapes = ((16, 32, 64),) if arguments.quick else ((128, 192, 512), (4096, 192, 512), (128, 640, 1712))
    for tokens, width, inner in shapes:
        torch.manual_seed(0)
        left, weight = torch.randn(tokens, width), torch.randn(inner, width)
        exact = F.linear(left.double(), weight.double())
        shape = f"[{tokens} {width}] x [{width} {inner}]"
        for precision in ("highest", "medium"):
            torch.set_float32_matmul_precision(precision)
            figures[f"{shape} {precision}"] = float((F.linear(left, weight) - exact).norm() / exact.norm())
        times = max(1, int(2e9 / (tokens * width * inner)))
        high, medium = (
            functools.partial(product, precision, left, weight, times) for precision in ("highest", "medium")
        )
        comparison = alternate(high, medium, arguments.repeats)
        rows.append(comparison.row(f"precision_{tokens}_{width}", f"product {shape}, highest", "medium", "products"))
    record("precision", arguments, rows, {"relative_error": figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
