"""`nla doctor`: versions, devices, memory and disk of this machine, and known problems with them."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PACKAGES = (
    "nla", "torch", "transformers", "peft", "lightning", "torchmetrics", "hydra-core", "huggingface_hub", "safetensors",
    "httpx",
)  # fmt: skip
EXTRAS = ("bitsandbytes", "wandb", "datasets", "hydra-submitit-launcher")  # those of pyproject.toml
LEAST_DISK = 20  # GiB below which a 7B model's files do not fit


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: `problem` says what will fail, `note` what a person should know."""

    topic: str
    text: str
    kind: Literal["fact", "note", "problem"] = "fact"


def examine(folder: Path) -> list[Finding]:
    """Everything in the order printed. Loads torch, downloads nothing, asks the hub nothing."""
    return [*versions(), *devices(), *disk(folder), *hub()]


def versions() -> Iterator[Finding]:
    yield Finding("python", f"{platform.python_version()} on {platform.platform()}")
    installed = {name: _version(name) for name in (*PACKAGES, *EXTRAS)}
    for name in PACKAGES:
        version = installed[name]
        yield Finding(
            name, version or "not installed: run make demo, or pip install nla", "fact" if version else "problem"
        )
    for name in EXTRAS:
        yield Finding(name, installed[name] or "not installed (optional)")
    yield from known_problems({name: version for name, version in installed.items() if version})


def known_problems(installed: dict[str, str]) -> Iterator[Finding]:
    """Combinations of installed versions that are known to fail."""
    for name, least in (("torch", (2, 11)), ("transformers", (5, 0)), ("peft", (0, 19)), ("lightning", (2, 6))):
        if name in installed and _numbers(installed[name]) < least:
            yield Finding(name, f"{installed[name]} is older than {'.'.join(map(str, least))}: upgrade it", "problem")
    if _numbers(installed.get("transformers", "5")) >= (6, 0):
        yield Finding(
            "transformers", f"{installed['transformers']}: tested below 6 only; pip install 'transformers<6'", "problem"
        )
    if "bitsandbytes" in installed and _numbers(installed["bitsandbytes"]) < (0, 46):
        yield Finding("bitsandbytes", f"{installed['bitsandbytes']} is older than 0.46: upgrade it", "problem")


def devices() -> Iterator[Finding]:
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    yield Finding("cpu", f"{os.cpu_count()} cores, {gib(memory)} of memory")
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        free, _ = torch.cuda.mem_get_info(index)
        yield Finding(f"gpu {index}", f"{gpu.name}, {gib(gpu.total_memory)}, {gib(free)} free")
        if gpu.major < 8:
            yield Finding(f"gpu {index}", "no bfloat16 units: hardware.trainer.precision=16-mixed", "note")
    if torch.backends.mps.is_available():
        yield Finding("mps", "Apple GPU: hardware=mps has not been run yet; see docs/guides/real-models.md", "note")
    elif not torch.cuda.is_available():
        yield Finding("gpu", "none: the embedded world runs here, models above 1B are slow", "note")


def disk(folder: Path) -> Iterator[Finding]:
    from huggingface_hub import constants

    for name, path in (("disk", folder), ("hub cache", Path(constants.HF_HUB_CACHE))):
        existing = next(parent for parent in (path, *path.resolve().parents) if parent.is_dir())
        free = shutil.disk_usage(existing).free
        text = f"{path}: {gib(free)} free"
        if not os.access(existing, os.W_OK):
            yield Finding(name, f"{text}; not writable: set HF_HUB_CACHE or choose another folder", "problem")
        elif free < LEAST_DISK * 2**30:
            yield Finding(name, f"{text}: a 7B model's files need about {LEAST_DISK} GiB", "note")
        else:
            yield Finding(name, text)


def hub() -> Iterator[Finding]:
    from huggingface_hub import get_token, is_offline_mode

    login = "a token is stored" if get_token() else "not logged in: `hf auth login` for gated models (Gemma, Llama)"
    yield Finding("hub login", login, "fact" if get_token() else "note")
    if is_offline_mode():
        yield Finding("offline mode", "on (HF_HUB_OFFLINE): only what is in the cache can be loaded", "note")
    else:
        yield Finding("offline mode", "off")


def gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split("+")[0].split(".")[:2] if number.isdigit())
