"""A metrics.json."""

METRICS = {
    "fve": 0.654, "fve_ci95": [0.646, 0.66], "n": 1024, "documents": 512,
    "controls": {"empty_text": {"fve": -0.748, "ci95": [-0.765, -0.736]}, "nearest_neighbour": {"fve": None}},
}  # fmt: skip
