"""How explanations are sampled, as one value."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from nla.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """What a sampler needs besides model, prompts, seed and row numbers. `conf/rollout/engine.yaml` sets the values.

    Args:
        group_size: samples per activation.
        max_new_tokens: length cap.
        temperature: 0 is greedy. In training, anything but 1 departs from the policy that is trained.
        top_p: keep the smallest set of tokens that holds this probability; 1 keeps all.
        top_k: keep this number of the likeliest tokens; 0 keeps all.
        backend: `engine`, or `hf`, the reference.
        dtype: what the engine computes in; None: the weights' own type. On a CPU without matrix units for bfloat16,
            float32 is faster. `hf` ignores it.
        graphs: whether the engine's decode step is a CUDA graph; None: on a GPU whose model is whole. `hf` ignores it.
    """

    group_size: int
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    backend: Literal["engine", "hf"]
    dtype: Literal["float32", "bfloat16", "float16"] | None
    graphs: bool | None

    def __post_init__(self) -> None:
        rules = {
            "group_size": (self.group_size >= 1, "at least 1"),
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (self.temperature >= 0, "0 (greedy) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "0 (all tokens) or more"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ConfigError(f"{name}={getattr(self, name)}: sampling needs {rule}")

    @classmethod
    def policy(cls, max_new_tokens: int, group_size: int = 1, **changes: Any) -> "SamplingParams":
        """The policy itself: temperature 1, no token excluded, by the engine; `changes` names what differs."""
        return dataclasses.replace(cls(group_size, max_new_tokens, 1.0, 1.0, 0, "engine", None, None), **changes)

    @classmethod
    def greedy(cls, max_new_tokens: int, **changes: Any) -> "SamplingParams":
        """The likeliest token at each step."""
        return cls.policy(max_new_tokens, temperature=0.0, **changes)
