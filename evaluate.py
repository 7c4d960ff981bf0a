"""Evaluate a saved pair: python evaluate.py nla=<folder or hub id> [data=<name>] [overrides]."""

import sys

from nla.errors import outside_environment

try:
    from nla.config.check import check_evaluate
    from nla.config.launch import launch
    from nla.evaluation.program import evaluate
except ModuleNotFoundError as error:
    print(outside_environment(error), file=sys.stderr)
    raise SystemExit(2) from None

if __name__ == "__main__":
    sys.exit(launch(evaluate, "evaluate", check_evaluate))
