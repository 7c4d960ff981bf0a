"""Which parameters of a model train, and which are the inner matrices that Muon is made for."""

from typing import cast

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that receive gradients."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def inner_matrices(module: nn.Module) -> list[nn.Parameter]:
    """Weights of linear layers, each once, without tables, output heads, adapters and stacked experts.

    Chosen by module, not by shape: in a large model a threshold on rows would split a block.
    """
    heads = {id(model.get_output_embeddings()) for model in module.modules() if isinstance(model, PreTrainedModel)}
    tables = {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Embedding)}
    weights: dict[int, nn.Parameter] = {}
    for name, layer in module.named_modules():
        linear = isinstance(layer, (nn.Linear, Conv1D)) and id(layer) not in heads and "lora_" not in name
        if linear and id(layer.weight) not in tables:
            weight = cast(nn.Parameter, layer.weight)
            weights[id(weight)] = weight
    return list(weights.values())
