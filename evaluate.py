"""Evaluate a saved pair: python evaluate.py nla=<folder or hub id> [data=<name>] [overrides]."""

import sys

from nla import evaluating
from nla.composition import launch
from nla.config import check_evaluate

if __name__ == "__main__":
    sys.exit(launch(evaluating.evaluate, "evaluate", check_evaluate))
