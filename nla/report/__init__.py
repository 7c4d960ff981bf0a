"""The page `report.html`: what a pair says at every token of a text, and how far to believe it, in one file.

May import `nla.models` and below, but neither data nor evaluation. Public: the names below.
"""

from nla.report.page import write_report
from nla.report.reading import read_tokens
from nla.report.records import Report, TextRecord, TokenRecord, read_report

__all__ = ["Report", "TextRecord", "TokenRecord", "read_report", "read_tokens", "write_report"]
