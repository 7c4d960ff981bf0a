"""From YAML to a checked, typed config: schema, checks, composition, launching, run folders, sweeps.

May import `nla.models` and below; knows no data and no training.
"""
