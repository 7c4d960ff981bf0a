"""The embedded default: a small world whose generator knows the facts of every document."""

from nla.data.world.source import WorldSource

__all__ = ["WorldSource"]
