"""Natural Language Autoencoders: read what a language model's activation says, in words, and get it back from them.

The names below load on first use, so that importing `nla` costs nothing; none needs Lightning or Hydra.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nla.models.pair import NLA as NLA
    from nla.models.reading.chat import read_chat as read_chat
    from nla.models.reading.comparison import compare as compare
    from nla.models.reading.tensors import check_hook as check_hook
    from nla.models.reading.tensors import from_hook as from_hook
    from nla.models.target import Target as Target

__all__ = ["NLA", "Target", "check_hook", "compare", "from_hook", "read_chat"]
__version__ = "0.1.0"

_HOMES = {
    "NLA": "nla.models.pair",
    "Target": "nla.models.target",
    "check_hook": "nla.models.reading.tensors",
    "compare": "nla.models.reading.comparison",
    "from_hook": "nla.models.reading.tensors",
    "read_chat": "nla.models.reading.chat",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nla' has no attribute {name!r}")
