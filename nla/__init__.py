"""Natural Language Autoencoders: read what a language model's activation says, in words, and get it back from them.

The names below load on first use, so that importing `nla` costs nothing; none needs Lightning or Hydra.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nla.autoencoder import NLA as NLA
    from nla.chat import read_chat as read_chat
    from nla.comparison import compare as compare
    from nla.hooks import check_hook as check_hook
    from nla.hooks import from_hook as from_hook
    from nla.target import Target as Target

__all__ = ["NLA", "Target", "check_hook", "compare", "from_hook", "read_chat"]
__version__ = "0.1.0"

_HOMES = {
    "NLA": "nla.autoencoder",
    "Target": "nla.target",
    "check_hook": "nla.hooks",
    "compare": "nla.comparison",
    "from_hook": "nla.hooks",
    "read_chat": "nla.chat",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nla' has no attribute {name!r}")
