"""Records with shapes and the maths of the method (docs/method.md).

May import torch, torchmetrics and `nla.errors`, nothing else from this package.
Public: `records`, `objectives`, `fve`, `padding`, `summary`.
"""
