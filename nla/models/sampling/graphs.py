"""The decode step as a CUDA graph: launched by one call instead of one for each of its thousands of kernels.

A graph is valid for one shape of batch and buffers within one rollout, whose tensors it reads in place. A new shape is
run plainly at its first step, recorded at its second and replayed from then on. Recording takes as long as launching
one step, so nothing outlives the rollout and no compiler is needed.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nla.errors import first_line

Step = Callable[..., Float[Tensor, "row d_model"]]  # decoder, embeddings, cache, prefixes, position


class GraphedStep:
    """`step`, recorded and replayed; if it cannot be recorded, it runs plainly, with a warning."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.shape: tuple[int, int] | None = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.recordable = True
        self.inputs: tuple[Tensor, Tensor]
        self.hidden: Tensor

    def __call__(
        self,
        decoder: Any,
        embeddings: Float[Tensor, "row 1 d_model"],
        cache: Any,
        prefixes: Any,
        position: Int[Tensor, "1 1"],
    ) -> Float[Tensor, "row d_model"]:
        """The step's result, in a buffer that the next call overwrites."""
        shape = (len(embeddings), cache.size)
        if shape != self.shape or not self.recordable:
            self.shape, self.graph = shape, None
            return self.step(decoder, embeddings, cache, prefixes, position)
        if self.graph is None:
            self.inputs = embeddings.clone(), position.clone()
            try:
                with torch.cuda.graph(graph := torch.cuda.CUDAGraph()):
                    self.hidden = self.step(decoder, self.inputs[0], cache, prefixes, self.inputs[1])
            except RuntimeError as error:  # something in it waits for the device, or allocates while it must not
                self.recordable = False
                warnings.warn(f"the decode step is not recorded ({first_line(error)}); it runs plainly", stacklevel=4)
                return self.step(decoder, embeddings, cache, prefixes, position)
            self.graph = graph
        for kept, new in zip(self.inputs, (embeddings, position), strict=True):
            kept.copy_(new)
        self.graph.replay()
        return self.hidden
