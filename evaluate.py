"""Evaluate a saved pair: python evaluate.py nla=<folder or hub id> [data=<name>] [overrides]."""

import sys

try:
    from nla.config.check import check_evaluate
    from nla.config.launch import launch
    from nla.evaluation.program import evaluate
except ModuleNotFoundError as error:
    if (error.name or "").startswith("nla."):
        raise
    print(
        f"no module named {error.name!r}: activate the environment (source .venv/bin/activate), or make one "
        "(make demo, or pip install -e .)",
        file=sys.stderr,
    )
    raise SystemExit(2) from None

if __name__ == "__main__":
    sys.exit(launch(evaluate, "evaluate", check_evaluate))
