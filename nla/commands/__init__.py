"""The `nla` console script, one file per verb; each is thin.

May import every room; nothing imports it. Public: `cli.main`, the script's entry.
"""
