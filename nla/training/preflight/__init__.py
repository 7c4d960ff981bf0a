"""`nla preflight`: what can go wrong in a long run is tried out before it, in under a minute.

May import what `nla.training` may, without its program.
Public: `preflight` runs the checks and prints each as it ends, `require` also stops where one failed.
"""

from nla.training.preflight.checks import Check
from nla.training.preflight.run import preflight, require

__all__ = ["Check", "preflight", "require"]
