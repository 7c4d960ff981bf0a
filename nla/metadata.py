"""`nla_meta.yaml`, the facts that travel with a saved half: read strictly, written as released.

Both spellings met in the wild are read (`av`/`ar`, older `actor`/`critic`); only the newer one is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from nla.errors import ConfigError, ReleaseError
from nla.objectives import Scale, resolve_scale

METADATA = "nla_meta.yaml"
MAX_METADATA_BYTES = 1 << 20
ROLES = {"av": "av", "actor": "av", "ar": "ar", "critic": "ar"}
OLDER = {"av": "actor", "ar": "critic"}


@dataclass(frozen=True, slots=True)
class Metadata:
    """What `nla_meta.yaml` says about one half of a pair."""

    role: str  # av | ar
    base_model: str
    d_model: int
    layer: int
    injection_scale: Scale | str  # "absent" where the file does not say
    mse_scale: Scale
    templates: dict[str, str]  # av, ar
    tokens: dict[str, Any] = field(default_factory=dict)
    stage: str | None = None
    training: dict[str, Any] | None = None


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses aliases (bombs) and duplicate keys (PyYAML keeps the last in silence)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ReleaseError("YAML aliases are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str):
                raise ReleaseError(f"key {name!r} on line {key.start_mark.line + 1} is not a string: quote it")
            if name in seen:
                raise ReleaseError(f"key {name!r} occurs twice, again on line {key.start_mark.line + 1}: keep one")
            seen.add(name)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a small YAML file. Raises ReleaseError, which names the file; runs no code."""
    if not path.is_file():
        raise ReleaseError(f"{path} is missing: the folder is not a released checkpoint, or is only half of one")
    if path.stat().st_size > MAX_METADATA_BYTES:
        raise ReleaseError(f"{path} has {path.stat().st_size} bytes, at most {MAX_METADATA_BYTES} are read")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except ReleaseError as error:
        raise ReleaseError(f"{path}: {error}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ReleaseError(f"{path} is not plain YAML ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(content, dict):
        raise ReleaseError(f"{path}: expected a mapping, found {type(content).__name__}")
    return content


def read_metadata(folder: Path) -> Metadata:
    """Parse and check one folder's `nla_meta.yaml`. Raises ReleaseError naming key, value and rule."""
    path = folder / METADATA
    content = read_yaml(path)
    if content.get("kind") != "nla_model":
        raise ReleaseError(f"{path}: kind is {content.get('kind')!r}, expected 'nla_model'")
    role = ROLES.get(str(content.get("role")))
    if role is None:
        raise ReleaseError(f"{path}: role is {content.get('role')!r}, expected one of {', '.join(ROLES)}")
    extraction = _section(path, content, "extraction")
    d_model = _whole(path, "d_model", content.get("d_model", extraction.get("d_model")), least=1)
    if "injection_scale" in extraction:
        injection_scale = _scale(path, "extraction.injection_scale", extraction["injection_scale"], d_model)
    else:
        injection_scale = "absent"
    templates = _section(path, content, "prompt_templates")
    known = {new: templates.get(new, templates.get(OLDER[new])) for new in OLDER}
    base = content.get("base_checkpoint")
    if not isinstance(base, str) or not base:
        raise ReleaseError(f"{path}: base_checkpoint is {base!r}, expected the id of the model that was read")
    return Metadata(
        role=role,
        base_model=base,
        d_model=d_model,
        layer=_layer(path, content, extraction),
        injection_scale=injection_scale,
        mse_scale=_scale(path, "extraction.mse_scale", extraction.get("mse_scale", "sqrt_d_model"), d_model),
        templates={name: text for name, text in known.items() if isinstance(text, str)},
        tokens=_section(path, content, "tokens"),
        stage=content.get("stage"),
        training=content.get("training"),
    )


def _section(path: Path, content: dict[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key) or {}
    if not isinstance(value, dict):
        raise ReleaseError(f"{path}: {key} is {value!r}, expected a mapping")
    return value


def _whole(path: Path, key: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ReleaseError(f"{path}: {key} is {value!r}, expected a whole number of at least {least}")
    return value


def _scale(path: Path, key: str, value: Any, d_model: int) -> Scale:
    try:
        return resolve_scale(value, d_model)
    except ConfigError as error:
        hint = "; YAML reads 8e4 as text: write 80000.0" if isinstance(value, str) else ""
        raise ReleaseError(f"{path}: {key}: {error}{hint}") from None


def _layer(path: Path, content: dict[str, Any], extraction: dict[str, Any]) -> int:
    critic, ar = _section(path, content, "critic"), _section(path, content, "ar")
    spellings = {
        "extraction_layer_index": content.get("extraction_layer_index"),
        "extraction.layer_index": extraction.get("layer_index"),
        "critic.extraction_layer_index": critic.get("extraction_layer_index"),
        "ar.num_hidden_layers": ar.get("num_hidden_layers"),  # also l, not the count
    }
    found = {key: _whole(path, key, value, least=0) for key, value in spellings.items() if value is not None}
    if len(set(found.values())) != 1:
        raise ReleaseError(f"{path}: the layer must be stated once or in agreement, found {found or 'nothing'}")
    return next(iter(found.values()))


def write_metadata(folder: Path, metadata: Metadata) -> None:
    """Write `nla_meta.yaml` in the newer spelling; plain types only."""
    extraction: dict[str, Any] = {"mse_scale": metadata.mse_scale}
    if metadata.injection_scale != "absent":
        extraction = {"injection_scale": metadata.injection_scale, **extraction}
    content: dict[str, Any] = {
        "kind": "nla_model",
        "schema_version": 1,
        "role": metadata.role,
        "stage": metadata.stage,
        "base_checkpoint": metadata.base_model,
        "d_model": metadata.d_model,
        "extraction_layer_index": metadata.layer,
        "extraction": extraction,
        "tokens": dict(metadata.tokens),
        "prompt_templates": dict(metadata.templates),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if metadata.role == "ar":
        content["ar"] = {"num_hidden_layers": metadata.layer}
    if metadata.training:
        content["training"] = metadata.training
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    (folder / METADATA).write_text(text, encoding="utf-8")


def check_token(path: Path, tokens: Mapping[str, Any], key: str, live: object) -> None:
    """A recorded token fact must equal the live tokenizer's. Raises ReleaseError with expected and found."""
    if tokens.get(key) is not None and tokens[key] != live:
        raise ReleaseError(
            f"{path / METADATA}: tokens.{key} was recorded as {tokens[key]!r}, this tokenizer gives {live!r}: "
            "tokenizer or chat template have drifted; use the files saved beside the weights"
        )
