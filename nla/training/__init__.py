"""How a pair is trained: stages, rewards, optimizer, parallelism, callbacks, checkpoints, preflight, program.

May import every room but `nla.evaluation`, `nla.pretraining` and `nla.commands`.
"""
