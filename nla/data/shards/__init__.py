"""Prepared activations on disk: the file format, the source of documents, and the rows that training reads.

May import the rest of `nla.data`, without its loader, and what is below it.
Public: `source.ShardSource`, `reader.ShardReader`, and `format`.
"""
