"""The frozen target, the verbalizer, the reconstructor and the pair, as plain torch modules.

May import `nla.core`; knows no config, no Lightning and no Hydra.
"""
