"""Names that transformers 4.57 reads, beside those of transformers 5, in a folder that was just written.

The released client and critic run on 4.57. Without `rope_theta` it takes its default, 10,000, and the numbers are wrong
without an error; with `tokenizer_class: TokenizersBackend` it refuses. transformers 5 reads the same from either.
"""

import json
from pathlib import Path
from typing import Any

from nla import files

NOT_SCALING = ("rope_theta", "partial_rotary_factor")


def add_older_names(folder: Path, padding_side: str | None = None) -> None:
    """Complete config.json and tokenizer_config.json; with `padding_side` also say on which side to pad."""
    _rewrite(folder / "config.json", _with_rope)
    _rewrite(folder / "tokenizer_config.json", lambda config: _tokenizer(config, padding_side))


def _rewrite(path: Path, change: Any) -> None:
    if path.is_file():
        config = json.loads(path.read_text(encoding="utf-8"))
        change(config)
        files.write_text(path, json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _with_rope(config: dict[str, Any]) -> None:
    """`rope_theta`, `rope_scaling` and `rope_local_base_freq` from `rope_parameters`, at every level."""
    for value in list(config.values()):
        if isinstance(value, dict) and "rope_parameters" in value:
            _with_rope(value)
    parameters = config.get("rope_parameters")
    if not isinstance(parameters, dict):
        return
    by_type = {name: each for name, each in parameters.items() if isinstance(each, dict)}
    full = by_type.get("full_attention", parameters)
    if "rope_theta" not in full:
        return
    scaling = {name: value for name, value in full.items() if name not in NOT_SCALING}
    config["rope_theta"] = full["rope_theta"]
    config["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
    if "sliding_attention" in by_type:
        config["rope_local_base_freq"] = by_type["sliding_attention"]["rope_theta"]


def _tokenizer(config: dict[str, Any], padding_side: str | None) -> None:
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    if padding_side is not None:
        config["padding_side"] = padding_side
