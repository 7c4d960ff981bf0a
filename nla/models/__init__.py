"""Target, verbalizer and reconstructor as plain torch modules.

May import `nla.core`, `nla.files` and `nla.errors`; knows no config, no Lightning and no Hydra.
Public: `pair.NLA`, `target.Target`, `verbalizer.Verbalizer`, `reconstructor.Reconstructor`, `reference.Reference`,
`sampling`.
"""
