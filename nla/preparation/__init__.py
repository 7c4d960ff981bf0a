"""From a corpus to shards of activations, and from shards to explanations."""

from nla.preparation.activations import Plan, read_corpus
from nla.preparation.explanations import explain_shards
from nla.preparation.folder import Folder
from nla.preparation.released import write_released

__all__ = ["Folder", "Plan", "explain_shards", "read_corpus", "write_released"]
