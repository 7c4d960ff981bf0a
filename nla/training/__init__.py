"""How a pair is trained: stages, rewards, optimizer, parallelism, callbacks, checkpoints, preflight, program.

May import every room except `nla.evaluation`, `nla.pretraining` and `nla.commands`.
Public: `nla.training.program.train`, and the names that `stages`, `callbacks` and `preflight` list.
"""
