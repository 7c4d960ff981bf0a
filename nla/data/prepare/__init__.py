"""From a corpus to shards of activations, and from shards to explanations."""

from nla.data.prepare.activations import Plan, read_corpus
from nla.data.prepare.explanations import explain_shards
from nla.data.prepare.folder import Folder
from nla.data.prepare.released import write_released

__all__ = ["Folder", "Plan", "explain_shards", "read_corpus", "write_released"]
