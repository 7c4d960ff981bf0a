"""Natural Language Autoencoders: read what a language model's activation says, in words, and get it back from them.

The names below load on first use, so that importing `nla` costs nothing; neither needs Lightning or Hydra.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nla.autoencoder import NLA as NLA
    from nla.target import Target as Target

__all__ = ["NLA", "Target"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "NLA":
        from nla.autoencoder import NLA

        return NLA
    if name == "Target":
        from nla.target import Target

        return Target
    raise AttributeError(f"module 'nla' has no attribute {name!r}")
