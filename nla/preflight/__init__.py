"""Everything that can go wrong in a long run, tried out in under a minute before it: `nla preflight`."""

from nla.preflight.checks import Check
from nla.preflight.run import preflight, require, show

__all__ = ["Check", "preflight", "require", "show"]
