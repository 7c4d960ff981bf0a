"""Records with shapes and the maths of the method (docs/method.md): objectives, FVE, activation summary.

May import torch, torchmetrics and `nla.errors`; nothing else of this package.
"""
