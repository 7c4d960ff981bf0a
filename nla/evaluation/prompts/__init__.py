"""Prompt sets of the experiments, as data: each a JSON file with a version.

May import nothing of `nla` but `nla.errors`. Public: `load`.
"""

import json
from importlib.resources import files
from typing import Any

__all__ = ["load"]


def load(name: str) -> dict[str, Any]:
    """The prompt set `name`: `couplets` or `cues`."""
    return json.loads((files(__name__) / f"{name}.json").read_text(encoding="utf-8"))
