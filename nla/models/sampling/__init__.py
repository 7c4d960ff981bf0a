"""Sampling of explanations: `SamplingParams` and two samplers with one signature.

`engine` is our decode loop, `hf` the reference, which uses `model.generate`.
May import `nla.core`, `nla.models.backbone` and `nla.models.lora`. Public: `SamplingParams`, `sampler`.
"""

from collections.abc import Callable

from nla.errors import ConfigError
from nla.models.sampling import engine, hf
from nla.models.sampling.params import SamplingParams

__all__ = ["SamplingParams", "sampler"]


def sampler(backend: str) -> Callable:
    """`engine` or `hf` -> its `sample` function. Raises ConfigError."""
    if backend == "engine":
        return engine.sample
    if backend == "hf":
        return hf.sample
    raise ConfigError(f"sampling.backend={backend}: expected engine or hf")
