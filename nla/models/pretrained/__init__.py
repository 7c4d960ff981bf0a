"""Pairs on disk and on the hub: metadata, the released format, loading."""
