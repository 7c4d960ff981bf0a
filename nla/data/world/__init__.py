"""The embedded default: a small world whose generator knows the facts of every document.

May import `nla.data.source` and what is below `nla.data`; only `nla.pretraining` and `nla pretrain` may import it.
Public: `WorldSource`.
"""

from nla.data.world.source import WorldSource

__all__ = ["WorldSource"]
