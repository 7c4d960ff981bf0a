"""Pairs in the released format, put together by hand from plain transformers, safetensors and YAML text.

Also a hub cache as `huggingface_hub` leaves it on disk: `blobs`, `refs`, and `snapshots` of links.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from support.models import MARKER, make_model, make_tokenizer

LAYER, WIDTH = 1, 32
VERBALIZER_PROMPT = "What does this say? <concept>{injection_char}</concept>"
RECONSTRUCTOR_PROMPT = "Summary of the following text: <text>{explanation}</text> <summary>"
BASES = {"qwen2": "Qwen/Qwen2.5-7B-Instruct", "gemma3_images": "google/gemma-3-12b-it"}


def golden_pair(family: str, root: Path) -> tuple[Path, Path]:
    """Folders of a verbalizer and a reconstructor as released: `qwen2` in the newer spelling, Gemma 3 in the older."""
    verbalizer, reconstructor = root / "av", root / "ar"
    tokenizer = make_tokenizer(bos=family.startswith("gemma"))
    make_model(family, seed=1).save_pretrained(verbalizer)
    _reconstructor(family, reconstructor)
    for folder in (verbalizer, reconstructor):
        tokenizer.save_pretrained(folder)
    written = _newer if family == "qwen2" else _older
    for role, folder in (("av", verbalizer), ("ar", reconstructor)):
        (folder / "nla_meta.yaml").write_text(written(role, BASES[family], tokenizer), encoding="utf-8")
    return verbalizer, reconstructor


def _reconstructor(family: str, folder: Path) -> None:
    """Blocks 0..LAYER of the language model, no final norm, no head of the LM, and the value head."""
    folder.mkdir(parents=True)
    model: Any = make_model("gemma3" if family == "gemma3_images" else family, seed=2)
    kept = {}
    for name, tensor in model.state_dict().items():
        block = name.split(".layers.")[1].split(".")[0] if ".layers." in name else "0"
        if int(block) <= LAYER and name not in ("model.norm.weight", "lm_head.weight"):
            kept[name] = tensor.clone()
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict() | {"num_hidden_layers": LAYER + 1, "architectures": [type(model).__name__]}
    if config.get("layer_types"):
        config["layer_types"] = config["layer_types"][: LAYER + 1]
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(3)
    head = torch.eye(WIDTH) + 0.1 * torch.randn(WIDTH, WIDTH, generator=generator)
    save_file({"weight": head}, folder / "value_head.safetensors")


def prompt_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    content = VERBALIZER_PROMPT.replace("{injection_char}", MARKER)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _tokens(tokenizer: PreTrainedTokenizerBase) -> str:
    ids = prompt_ids(tokenizer)
    place = ids.index(tokenizer.convert_tokens_to_ids(MARKER))
    suffix = tokenizer("</text> <summary>", add_special_tokens=False)["input_ids"][-3:]
    return (
        f"tokens:\n  injection_char: {MARKER}\n  injection_token_id: {ids[place]}\n"
        f"  injection_left_neighbor_id: {ids[place - 1]}\n  injection_right_neighbor_id: {ids[place + 1]}\n"
        f"  critic_suffix_ids: {suffix}\n"
    )


def _newer(role: str, base: str, tokenizer: PreTrainedTokenizerBase) -> str:
    return (
        f"kind: nla_model\nschema_version: 2\nrole: {role}\nstage: rl\nbase_checkpoint: {base}\nd_model: {WIDTH}\n"
        f"extraction_layer_index: {LAYER}\nextraction:\n  injection_scale: 150.0\n  mse_scale: sqrt_d_model\n"
        f"{_tokens(tokenizer)}"
        f'prompt_templates:\n  av: "{VERBALIZER_PROMPT}"\n  ar: "{RECONSTRUCTOR_PROMPT}"\n'
        f"ar:\n  num_hidden_layers: {LAYER}\ncreated_at: '2026-01-01T00:00:00+00:00'\ntraining:\n  lr: 1.4e-05\n"
        "trained_on: [rl_shuf.parquet]\nparent_checkpoints:\n  av: someone/warm-start-av\n"
    )


def _older(role: str, base: str, tokenizer: PreTrainedTokenizerBase) -> str:
    old = {"av": "actor", "ar": "critic"}[role]
    return (
        f"kind: nla_model\nrole: {old}\nbase_checkpoint: {base}\nd_model: {WIDTH}\n"
        f"extraction:\n  injection_scale: 80000.0\ncritic:\n  extraction_layer_index: {LAYER}\n{_tokens(tokenizer)}"
        f'prompt_templates:\n  actor: "{VERBALIZER_PROMPT}"\n  critic: "{RECONSTRUCTOR_PROMPT}"\n'
    )


def put_into_cache(cache: Path, repository: str, folder: Path) -> str:
    """Lay a folder down as the hub's cache would hold it after a download of `main`; the commit's hash."""
    root = cache / f"models--{repository.replace('/', '--')}"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    commit = hashlib.sha1("".join(digests.values()).encode(), usedforsecurity=False).hexdigest()
    (root / "blobs").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    for path, digest in digests.items():
        (root / "blobs" / digest).write_bytes(path.read_bytes())
        link = root / "snapshots" / commit / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(root / "blobs" / digest, link.parent))
    return commit
