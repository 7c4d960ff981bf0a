"""How explanations are sampled, as one value."""

from dataclasses import dataclass
from typing import Literal

from nla.errors import ConfigError

Backend = Literal["engine", "hf"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """The config group `sampling`, taken by every sampler.

    Args:
        group_size: explanations per activation; a group's samples are contiguous.
        max_new_tokens: cap of an explanation; one cut off by it is malformed.
        temperature: 0 is greedy. In joint training any value but 1 departs from the trained policy, and so do `top_p`
            and `top_k`.
        top_p: smallest set of tokens that holds this probability; 1 keeps all.
        top_k: number of likeliest tokens to keep; 0 keeps all.
        backend: `engine`, our decode loop, or `hf`, Hugging Face's `generate`: the slower reference.
        dtype: type that the engine computes in; None: that of the weights. float32 is faster for bfloat16 weights on a
            CPU without matrix units for bfloat16.
        graphs: whether the engine's decode step is a CUDA graph; None: on a GPU whose model is whole.
    """

    group_size: int
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    backend: Backend
    dtype: Literal["float32", "bfloat16", "float16"] | None
    graphs: bool | None

    def __post_init__(self) -> None:
        for name in ("group_size", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"sampling.{name}={getattr(self, name)}: must be at least 1")
        if self.temperature < 0:
            raise ConfigError(f"sampling.temperature={self.temperature}: must be 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"sampling.top_p={self.top_p}: must be above 0 and at most 1")
        if self.top_k < 0:
            raise ConfigError(f"sampling.top_k={self.top_k}: must be 0 (all tokens) or more")

    @classmethod
    def policy(cls, max_new_tokens: int, group_size: int = 1, temperature: float = 1.0) -> "SamplingParams":
        """Samples of the model's own distribution, by the engine in the weights' type."""
        return cls(
            group_size, max_new_tokens, temperature, top_p=1.0, top_k=0, backend="engine", dtype=None, graphs=None
        )

    @classmethod
    def greedy(cls, max_new_tokens: int) -> "SamplingParams":
        """The likeliest token at each step."""
        return cls.policy(max_new_tokens, temperature=0.0)
