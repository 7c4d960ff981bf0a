"""Records with shapes and the maths of the method (docs/method.md).

May import torch, torchmetrics and `nla.errors`; nothing else of this package.
Public, by module: `records`, `objectives`, `fve`, `padding`, `schedule`, `summary`.
"""
