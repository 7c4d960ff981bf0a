"""Evaluate a saved pair: python evaluate.py nla=<folder or hub id> [data=<name>] [overrides]."""

import sys

from nla.config.check import check_evaluate
from nla.config.compose import launch
from nla.evaluation import program as evaluating

if __name__ == "__main__":
    sys.exit(launch(evaluating.evaluate, "evaluate", check_evaluate))
