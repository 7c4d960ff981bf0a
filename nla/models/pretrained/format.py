"""The files of the released checkpoint format, two folders of safetensors: weights read and written.

Token ids are checked against the live tokenizer by `nla.models.pretrained.loading`.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from nla.errors import ModelError, ReleaseError
from nla.models.backbone import FINAL_NORMS, body, causal_lm, load_model_with_info, quiet, refuse_pickles
from nla.models.lora import has_lora, merged_state_dict

VALUE_HEAD = "value_head.safetensors"


def save_causal_lm(model: PreTrainedModel, folder: Path) -> None:
    """A plain Hugging Face model; adapters are merged, weights in 4 bits are written as bfloat16."""
    state = merged_state_dict(model) if has_lora(model) else None
    exported = causal_lm(body(model)) if hasattr(model.config, "quantization_config") else model
    with quiet():
        exported.save_pretrained(folder, state_dict=state)


def load_causal_lm(folder: Path, dtype: str = "float32") -> PreTrainedModel:
    """A verbalizer's model. Raises ReleaseError for pickles and missing weights."""
    refuse_pickles(folder)
    model, info = _load(folder, dtype)
    _refuse_keys(folder, "missing", info["missing_keys"])
    return model


def save_reconstructor(decoder: PreTrainedModel, head: nn.Linear, folder: Path) -> None:
    """Blocks 0..l under the causal LM's names, without final norm and lm_head, and the value head beside them."""
    model = causal_lm(decoder)
    state = {f"{model.base_model_prefix}.{name}": value for name, value in merged_state_dict(decoder).items()}
    with quiet():
        model.save_pretrained(folder, state_dict=state)
    save_head(head, folder)


def save_head(head: nn.Linear, folder: Path) -> None:
    save_file({"weight": head.weight.detach().float().cpu().contiguous()}, folder / VALUE_HEAD)


def load_head(folder: Path, d_model: int) -> Tensor:
    """The weight of a reconstructor's head, in float32. Raises ReleaseError."""
    refuse_pickles(folder)
    path = folder / VALUE_HEAD
    if not path.is_file():
        raise ReleaseError(
            f"{path} is missing: without its head a reconstructor predicts noise; fetch the whole folder"
        )
    try:
        head = load_file(path)
    except Exception as error:  # safetensors raises its own class, not exported in every version
        raise ReleaseError(f"{path} is not a safetensors file ({error})") from None
    expected = (d_model, d_model)
    if set(head) != {"weight"} or tuple(head["weight"].shape) != expected:
        shapes = {name: tuple(value.shape) for name, value in head.items()}
        raise ReleaseError(f"{path} holds {shapes}, expected one tensor 'weight' of shape {expected}")
    if not bool(head["weight"].isfinite().all()):
        raise ReleaseError(f"{path} holds values that are not finite")
    return head["weight"].to(torch.float32)


def load_reconstructor(folder: Path, dtype: str = "float32") -> PreTrainedModel:
    """The causal LM that holds blocks 0..l. Raises ReleaseError for pickles and weights that do not fit."""
    refuse_pickles(folder)
    model, info = _load(folder, dtype)
    missing = [name for name in info["missing_keys"] if not _by_design(name)]
    _refuse_keys(folder, "missing", missing)
    _refuse_keys(folder, "unexpected", info["unexpected_keys"])
    return model


def _by_design(name: str) -> bool:
    path = name.split(".")
    return "lm_head" in path or (len(path) >= 2 and path[-2] in FINAL_NORMS and len(path) <= 4)


def refuse_places_outside(folder: Path) -> None:
    """Raises ReleaseError if a weight index names a file that is not directly in the folder."""
    for path in sorted(folder.glob("*.index.json")):
        try:
            named = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ReleaseError(f"{path} is not a weight index ({error}): fetch the whole folder") from None
        for name in named:
            if not isinstance(name, str) or Path(name).name != name or "\0" in name:
                raise ReleaseError(f"{path}: weight_map names {name!r}, a path outside the folder: refused")


def _load(folder: Path, dtype: str) -> tuple[PreTrainedModel, dict[str, Any]]:
    refuse_places_outside(folder)
    try:
        return load_model_with_info(folder, dtype)
    except ModelError as error:
        raise ReleaseError(str(error)) from error


def _refuse_keys(folder: Path, kind: str, names: Any) -> None:
    if names:
        shown = ", ".join(sorted(names)[:3])
        raise ReleaseError(f"{folder}: {len(names)} {kind} weights ({shown}): config.json and the weights do not agree")
