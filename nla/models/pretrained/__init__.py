"""Pairs on disk and on the hub.

May import the other modules of `nla.models` and what is below them.
Public: `metadata`, `format` (the released files), `loading`, `hub`.
"""
