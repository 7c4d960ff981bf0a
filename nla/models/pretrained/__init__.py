"""Pairs on disk and on the hub.

May import the other modules of `nla.models` and the rooms below them.
Public: `metadata`, `format` (the released files), `loading`, `hub`.
"""
