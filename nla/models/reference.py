"""The KL reference: the verbalizer as it was when the reference was made."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from nla.models.lora import has_lora
from nla.models.verbalizer import Verbalizer


class Reference:
    """Keeps the current weights of `policy`: a copy of the adapter if there is one, else of the whole model.

    Not a module, so its weights are in no state dict and are never trained.
    """

    def __init__(self, policy: Verbalizer) -> None:
        self.policy = policy
        self.verbalizer: Verbalizer | None = None  # the reference, if it has a model of its own
        self.adapter: dict[str, Tensor] = {}
        if has_lora(policy.model):
            self.adapter = {n: p.detach().clone() for n, p in policy.model.named_parameters() if "lora_" in n}
        else:
            self.verbalizer = copy.copy(policy)  # the same prompt and buffers, a model of its own
            model = copy.deepcopy(policy.model).requires_grad_(False)
            self.verbalizer._modules = {**policy._modules, "model": model}
            self.verbalizer.eval()

    @contextmanager
    def active(self) -> Iterator[Verbalizer]:
        """The reference as a verbalizer, without gradients and dropout. Inside, do not run the policy."""
        if self.verbalizer is not None:
            with torch.no_grad():
                yield self.verbalizer.to(self.policy.device)
            return
        was_training = self.policy.training
        try:
            with torch.no_grad(), _swapped_tensors(self.policy, self.adapter):
                self.policy.eval()
                yield self.policy
        finally:
            self.policy.train(was_training)


@contextmanager
def _swapped_tensors(policy: Verbalizer, adapter: dict[str, Tensor]) -> Iterator[None]:
    # swaps pointers and writes nothing: graphs that await their backward keep the tensors they saved
    parameters = {n: p for n, p in policy.model.named_parameters() if n in adapter}
    kept = {name: parameter.data for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        parameter.data = adapter[name].to(parameter.device)
    torch.clear_autocast_cache()  # else autocast keeps using casts of the previous tensors
    try:
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = kept[name]
        torch.clear_autocast_cache()
