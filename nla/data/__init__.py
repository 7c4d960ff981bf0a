"""Corpora, documents and their positions, prepared shards, teachers, and the Lightning loader over all of them.

May import `nla.config` and below; knows no training and no evaluation.
Public: the names below; by module, since they load Lightning and Hydra: `datamodule.NLADataModule`, `build.build_data`.
"""

from nla.data.source import SPLITS, Claim, Document, GroundTruth, Source
from nla.data.text import TextSource

__all__ = ["SPLITS", "Claim", "Document", "GroundTruth", "Source", "TextSource"]
