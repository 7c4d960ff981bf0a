"""What an evaluation proves: read off intervals, by hand."""

from copy import deepcopy

from nla.evaluation.suites.controls import CONTROLS
from nla.evaluation.verdicts import verdicts

METRICS = {
    "fve": 0.5,
    "fve_ci95": [0.45, 0.55],
    "fve_above_warm_start": 0.02,
    "fve_above_warm_start_ci95": [-0.01, 0.05],
    "controls": {name: {"fve": 0.0, "ci95": [-0.1, 0.1]} for name in CONTROLS}
    | {"source_text": {"fve": 0.4, "ci95": [0.3, 0.46]}, "shuffled": {"fve": None, "ci95": None}},
    "position_match": {
        "greedy": {"same_document": {"rank1": 0.9, "ci95": [0.8, 0.95], "chance": 0.5, "n": 10}},
    },
    "claims": {
        "true_share": 0.7,
        "true_share_ci95": [0.65, 0.75],
        "chance": {"true_share": 0.1, "true_share_ci95": [0.05, 0.15]},
        "change": {"true_share": -0.03, "true_share_ci95": [-0.05, -0.01]},
        "by_tokens_read": {
            "1-3": {"n": 30, "true_share": 0.5, "true_share_ci95": [0.4, 0.6]},
            "4-7": {"n": 30, "true_share": 0.97, "true_share_ci95": [0.9, 1.0]},
            "8-15": {"n": 5, "true_share": 0.2, "true_share_ci95": None},
        },
    },
    "robustness": {"flags": ["half of the FVE is lost when sentences change places"]},
    "seconds": {"total": 3},
}


def texts(proven: bool, metrics: dict) -> list[str]:
    return [verdict.text for verdict in verdicts(metrics) if verdict.proven == proven]


def test_what_is_proven_and_what_is_not() -> None:
    proven, open_ = texts(True, METRICS), texts(False, METRICS)
    assert len(proven) == 3
    assert "empty text" in proven[0] and "the context's last tokens" not in proven[0]
    assert "explanation of another document" not in proven[0]
    assert proven[1].startswith("positions of one text are told apart: 0.900 (0.800 to 0.950), by chance 0.500")
    assert proven[2].startswith("claims are true more often than by chance")
    assert open_ == [
        "joint training raised the FVE: by 0.020 (-0.010 to 0.050)",
        "the FVE is not clearly above: the context's last tokens",
        "joint training made claims less true: -0.030 (-0.050 to -0.010)",
        "after 1-3 tokens fewer than 95% of the claims are true: 0.500 (0.400 to 0.600)",
        "robustness: half of the FVE is lost when sentences change places",
    ]


def test_nothing_is_said_about_what_was_not_measured() -> None:
    metrics = deepcopy(METRICS)
    for key in ("fve_above_warm_start", "position_match", "claims", "robustness"):
        del metrics[key]
    assert len(verdicts(metrics)) == 2
    assert verdicts({**metrics, "fve_ci95": None}) == []
