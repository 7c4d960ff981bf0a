"""Two samplers of one signature: `engine`, our own decode loop, and `hf`, the reference through `model.generate`.

May import `nla.core` and `nla.models.backbone`.
Public: `SamplingParams`, the value that says how to sample; `sampler(backend)`.
"""

from collections.abc import Callable

from nla.errors import ConfigError
from nla.models.sampling import engine, hf
from nla.models.sampling.params import SamplingParams

__all__ = ["SamplingParams", "engine", "hf", "sampler"]


def sampler(backend: str) -> Callable:
    """`engine` or `hf` -> its `sample` function."""
    if backend == "engine":
        return engine.sample
    if backend == "hf":
        return hf.sample
    raise ConfigError(f"sampling backend {backend!r}: expected 'engine' or 'hf'")
