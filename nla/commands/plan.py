"""`nla plan [--json] [overrides of train.py] [planning=h200 planning.<key>=<value>]`."""

import argparse
import json
from collections.abc import Sequence

from nla.config.check import parse, plain_config
from nla.config.compose import compose
from nla.config.schema import TrainSettings
from nla.planning.facts import Assumptions
from nla.planning.plan import make_plan

GROUP = "planning="
WIDTH = 132  # characters of a table that goes into a file


class PlanSettings(TrainSettings):
    planning: Assumptions


def main(arguments: Sequence[str]) -> int:
    """Print the plan; exit status 0 if it fits, else 1. Raises NLAError."""
    parser = argparse.ArgumentParser(prog="nla plan", description="What a run will need, before anything is loaded.")
    parser.add_argument("--json", action="store_true", help="everything as JSON: bytes, seconds, FLOPs")
    parser.add_argument("overrides", nargs="*", help="as for train.py: experiment=..., hardware=..., key=value")
    options = parser.parse_args(list(arguments))
    plan = plan_of(options.overrides)
    if options.json:
        print(json.dumps(plan, indent=2))
    else:
        from rich.console import Console

        from nla.planning.table import print_plan

        console = Console(highlight=False)
        print_plan(plan, console if console.is_terminal else Console(highlight=False, width=WIDTH))
    return 0 if plan["fits"] else 1


def plan_of(overrides: Sequence[str]) -> dict:
    """The plan of these overrides. Raises NLAError."""
    chosen = [override for override in overrides if override.startswith(GROUP)]
    rest = [override for override in overrides if not override.startswith(GROUP)]
    settings = _load([f"+{chosen[-1]}" if chosen else "+planning=h100", *rest])
    if not chosen and settings.hardware.trainer.get("accelerator") == "cpu":
        settings = _load(["+planning=cpu", *rest])
    return make_plan(settings, settings.planning)


def _load(overrides: Sequence[str]) -> PlanSettings:
    return parse(PlanSettings, plain_config(compose("train", overrides), unneeded=("data.path",)))
