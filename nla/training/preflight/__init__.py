"""Everything that can go wrong in a long run, tried out in under a minute before it: `nla preflight`."""

from nla.training.preflight.checks import Check
from nla.training.preflight.run import preflight, require, show

__all__ = ["Check", "preflight", "require", "show"]
