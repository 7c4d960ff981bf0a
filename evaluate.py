"""Evaluate a saved pair: python evaluate.py nla=<folder or hub id> [data=<name>] [overrides]."""

import sys

from nla.config.check import check_evaluate
from nla.config.launch import launch
from nla.evaluation.program import evaluate

if __name__ == "__main__":
    sys.exit(launch(evaluate, "evaluate", check_evaluate))
