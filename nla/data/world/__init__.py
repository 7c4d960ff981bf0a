"""The embedded default: a small world whose generator knows the facts of every document.

May import `nla.data.source` and what is below `nla.data`; only `nla.pretraining` and `nla pretrain` may import it.
Public: `WorldSource`, and `ScenesSource`, whose documents give a model reasons to plan and to notice.
"""

from nla.data.world.scenes import ScenesSource
from nla.data.world.source import WorldSource

__all__ = ["ScenesSource", "WorldSource"]
