"""The page that people look at: every token of a text with its explanation and its error, in one offline file.

May import `nla.data.teachers.expectations`, `nla.models` and below. Public: the names below.
"""

from nla.report.page import write_page
from nla.report.records import Record, read_texts, to_json

__all__ = ["Record", "read_texts", "to_json", "write_page"]
