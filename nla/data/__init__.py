"""Corpora, the positions read in them, and the Lightning loader (`nla.data.datamodule`, imported by name)."""

from nla.data.source import SPLITS, Claim, Document, GroundTruth, Source
from nla.data.text import TextSource

__all__ = ["SPLITS", "Claim", "Document", "GroundTruth", "Source", "TextSource"]
