"""From a corpus to shards of activations, and from shards to explanations.

May import the rest of `nla.data` and what is below it. Public: the names below, which `nla prepare` puts together.
"""

from nla.data.prepare.activations import Plan, read_corpus
from nla.data.prepare.explanations import explain_shards
from nla.data.prepare.folder import Folder
from nla.data.prepare.released import write_released

__all__ = ["Folder", "Plan", "explain_shards", "read_corpus", "write_released"]
