"""Low-rank adapters: add, merge, save in PEFT's format and load."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from nla.errors import ModelError, ReleaseError
from nla.models.backbone import refuse_pickles

ADAPTER, ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter", "adapter_model.safetensors", "adapter_config.json"
ACTIVE = "default"  # PEFT's name of the one adapter


def add_lora(model: PreTrainedModel, rank: int, alpha: float, dropout: float = 0.0) -> PreTrainedModel:
    """Low-rank adapters on all linear layers, in place; everything else is frozen (attention alone underfits)."""
    from peft import inject_adapter_in_model

    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*_pattern keys did not match any targeted module.*"
        )  # PEFT's own patterns, for experts
        inject_adapter_in_model(lora_config(model, rank, alpha, dropout), model)
    for name, parameter in model.named_parameters():
        adapts = "lora_" in name
        parameter.requires_grad_(adapts)
        if adapts:
            parameter.data = parameter.data.float()  # in bf16 small updates would be rounded away
    return model


def lora_config(model: nn.Module, rank: int, alpha: float, dropout: float = 0.0) -> Any:
    """PEFT's description of the adapters that `add_lora` makes."""
    from peft import LoraConfig

    transposed = any(isinstance(module, Conv1D) for module in model.modules())  # GPT-2
    settings: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "fan_in_fan_out": transposed}
    return LoraConfig(**settings, target_modules="all-linear", bias="none")


def lora_strength(model: nn.Module) -> tuple[int, float]:
    """Rank and alpha of a model's adapters."""
    layer: Any = next(module for module in model.modules() if hasattr(module, "lora_alpha"))
    return int(layer.r[ACTIVE]), float(layer.lora_alpha[ACTIVE])


def has_lora(model: nn.Module) -> bool:
    return any("lora_" in name for name, _ in model.named_parameters())


def adapter_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Only the adapter's weights, under PEFT's names; empty without an adapter."""
    return {
        f"base_model.model.{name.replace('.default', '')}": parameter
        for name, parameter in model.named_parameters()
        if "lora_" in name
    }


@torch.no_grad()
def load_adapter(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a saved adapter into the one that `add_lora` made. Raises ModelError if it does not fit."""
    present = adapter_weights(model)
    wrong = sorted(set(present) ^ set(state)) or [n for n in present if present[n].shape != state[n].shape]
    if wrong:
        raise ModelError(
            f"the saved adapter does not fit this model ({len(wrong)} tensors, such as {wrong[0]}): "
            "rank, layer or base model differ from the run that made it"
        )
    for name, parameter in present.items():
        parameter.copy_(state[name])


def adapted_matrices(model: nn.Module) -> dict[int, Any]:
    """The adapter by the id of the weight it changes, where that is an ordinary matrix: not in 4 bits, no expert."""
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "lora_A")]
    plain = [layer for layer in layers if type(getattr(layer, "base_layer", None)) is nn.Linear and not layer.merged]
    return {id(layer.base_layer.weight): layer for layer in plain}


@torch.no_grad()
def merged_matrix(layer: Any, dtype: torch.dtype) -> Tensor:
    """A copy of an adapted matrix with its adapter added, rounded once."""
    weight = layer.base_layer.weight
    with torch.autocast(weight.device.type, enabled=False):
        return (weight.float() + layer.get_delta_weight(ACTIVE).float()).to(dtype)


@torch.no_grad()
def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a plain model: adapters merged into their base weights, names unchanged."""
    state, modules = {}, dict(model.named_modules())
    for name, tensor in model.state_dict().items():
        path, _, parameter = name.rpartition(".")
        if "lora_" in name or path not in modules:  # ...weight.absmax and the like describe a weight in 4 bits
            continue
        if hasattr(getattr(modules[path], parameter), "quant_state"):
            tensor = _dequantized(getattr(modules[path], parameter))
        while path.endswith(".base_layer"):  # experts stored as one tensor have a wrapper around a wrapper
            path = path.removesuffix(".base_layer")
            layer: Any = modules[path]
            if getattr(layer, "parameter_name", "weight") == parameter:
                tensor = tensor + layer.get_delta_weight(ACTIVE).to(tensor)
        state[f"{path}.{parameter}" if path else parameter] = tensor
    return state


def _dequantized(weight: Tensor) -> Tensor:
    """A weight stored in 4 bits, in the type that its model computes in."""
    from bitsandbytes.functional import dequantize_4bit  # pyright: ignore[reportMissingImports]

    state: Any = weight.quant_state  # pyright: ignore[reportAttributeAccessIssue]
    return dequantize_4bit(weight.data, state).to(state.dtype)


def save_adapter(model: nn.Module, base_model: str, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a half's adapter, if any, to `adapter/` in PEFT's format: merged weights cannot be continued."""
    state = {name: weight.detach().to(dtype).cpu().contiguous() for name, weight in adapter_weights(model).items()}
    if not state:
        return
    folder = folder / ADAPTER
    config = lora_config(model, *lora_strength(model))
    config.base_model_name_or_path = base_model
    config.save_pretrained(str(folder))
    save_file(state, folder / ADAPTER_WEIGHTS)


def saved_adapter(folder: Path) -> dict[str, Any] | None:
    """Rank and alpha of the adapter saved in a half's folder, as `add_lora` takes them; None if it has none."""
    path = folder / ADAPTER / ADAPTER_CONFIG
    if not path.is_file():
        return None
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        return {"rank": int(recorded["r"]), "alpha": float(recorded["lora_alpha"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ReleaseError(f"{path}: names no rank r and lora_alpha ({error}): fetch the whole folder again") from None


def load_adapter_state(folder: Path, rank: int, alpha: float) -> dict[str, Tensor] | None:
    """The adapter saved in a half's folder; None if it has none.

    Raises ReleaseError if its rank or alpha differ, since the same weights would then mean something else.
    """
    saved = saved_adapter(folder)
    if saved is None:
        return None
    refuse_pickles(folder / ADAPTER)
    if saved != {"rank": rank, "alpha": alpha}:
        raise ReleaseError(
            f"{folder / ADAPTER / ADAPTER_CONFIG}: the adapter has rank {saved['rank']} and alpha {saved['alpha']:g}, "
            f"adapter.rank={rank} and adapter.alpha={alpha} were asked for: continue it with its own"
        )
    return load_file(folder / ADAPTER / ADAPTER_WEIGHTS)
