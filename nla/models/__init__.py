"""Target, verbalizer and reconstructor as plain torch modules.

May import `nla.core`, `nla.files` and `nla.errors`; knows nothing of the config, Lightning or Hydra.
Public: `pair.NLA`, `target.Target`, `verbalizer.Verbalizer`, `reconstructor.Reconstructor`, `reference.Reference`,
`sampling`.
"""
