"""Two samplers of one signature: `engine`, our own decode loop, and `hf`, the reference through `model.generate`."""

from collections.abc import Callable

from nla.errors import ConfigError
from nla.models.sampling import engine, hf

__all__ = ["engine", "hf", "sampler"]


def sampler(backend: str) -> Callable:
    """`engine` or `hf` -> its `sample` function."""
    if backend == "engine":
        return engine.sample
    if backend == "hf":
        return hf.sample
    raise ConfigError(f"sampling backend {backend!r}: expected 'engine' or 'hf'")
