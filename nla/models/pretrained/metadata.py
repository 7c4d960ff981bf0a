"""`nla_meta.yaml`, the facts saved with a half: read strictly, written as released.

Both spellings found in the wild are read (`av`/`ar`, older `actor`/`critic`); only the newer one is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from nla import files
from nla.core.objectives import Scale, resolve_scale
from nla.errors import ConfigError, ReleaseError

METADATA = "nla_meta.yaml"
MAX_METADATA_BYTES = 1 << 20
ROLES = {"av": "av", "actor": "av", "ar": "ar", "critic": "ar"}
OLDER = {"av": "actor", "ar": "critic"}
SCHEMA_VERSIONS = (1, 2)
# Every known field, by section. An unknown field could change the meaning of the others, so it is refused.
KNOWN = {
    "": "kind schema_version role stage base_checkpoint base_revision d_model extraction_layer_index extraction tokens "
    "prompt_templates critic ar trained_on parent_checkpoints created_at created_by training",
    "extraction": "injection_scale mse_scale base_model d_model layer_index norm corpus corpus_slice positions_per_doc",
    "tokens": "injection_char injection_token_id injection_left_neighbor_id injection_right_neighbor_id "
    "critic_suffix_ids",
    "prompt_templates": "av ar actor critic",
    "critic": "extraction_layer_index num_hidden_layers",
    "ar": "num_hidden_layers",
}


@dataclass(frozen=True, slots=True)
class Metadata:
    """The facts of `nla_meta.yaml` about one half of a pair."""

    role: str  # av | ar
    base_model: str
    d_model: int
    layer: int
    injection_scale: Scale | str  # "absent" if the file does not say
    mse_scale: Scale
    templates: dict[str, str]  # av, ar
    tokens: dict[str, Any] = field(default_factory=dict)
    stage: str | None = None
    training: dict[str, Any] | None = None
    base_revision: str | None = None  # commit of the base model
    parents: tuple[str, ...] = ()  # hub ids with commits that training continued from


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses aliases (bombs) and duplicate keys (PyYAML silently keeps the last)."""

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
    """A mapping from a small YAML file. Raises ReleaseError that names the file; runs no code."""
    if not path.is_file():
        raise ReleaseError(f"{path} is missing: the folder is not a released checkpoint, or only half of one")
    if path.stat().st_size > MAX_METADATA_BYTES:
        raise ReleaseError(f"{path} has {path.stat().st_size} bytes, at most {MAX_METADATA_BYTES} are read")
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise ReleaseError(f"{path} is not UTF-8 ({error})") from None


def parse_yaml(text: str, path: Path) -> dict[str, Any]:
    """As `read_yaml`, for the text of `path`."""
    if len(text) > MAX_METADATA_BYTES:
        raise ReleaseError(f"{path} holds {len(text)} characters of YAML, at most {MAX_METADATA_BYTES} are read")
    try:
        content = yaml.load(text, Loader=_StrictLoader)
    except ReleaseError as error:
        raise ReleaseError(f"{path}: {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
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
    _refuse_unknown(path, content)
    extraction = _section(path, content, "extraction")
    widths = {"d_model": content.get("d_model"), "extraction.d_model": extraction.get("d_model")}
    d_model = _one(path, "d_model", {k: _whole(path, k, v, least=1) for k, v in widths.items() if v is not None})
    if "injection_scale" in extraction:
        injection_scale = _scale(path, "extraction.injection_scale", extraction["injection_scale"], d_model)
    else:
        injection_scale = "absent"
    base = _one(
        path,
        "base_checkpoint",
        {
            "base_checkpoint": _text(path, "base_checkpoint", content.get("base_checkpoint")),
            "extraction.base_model": extraction.get("base_model"),
        },
    )
    if not base:
        raise ReleaseError(f"{path}: base_checkpoint is {base!r}, expected the id of the model that was read")
    return Metadata(
        role=role,
        base_model=base,
        d_model=d_model,
        layer=_layer(path, content, extraction),
        injection_scale=injection_scale,
        mse_scale=_scale(path, "extraction.mse_scale", extraction.get("mse_scale", "sqrt_d_model"), d_model),
        templates=_templates(path, content),
        tokens=_section(path, content, "tokens"),
        stage=_text(path, "stage", content.get("stage")),
        training=_section(path, content, "training") or None,
        base_revision=_text(path, "base_revision", content.get("base_revision")),
        parents=_parents(content.get("parent_checkpoints")),
    )


def _refuse_unknown(path: Path, content: dict[str, Any]) -> None:
    for section, known in KNOWN.items():
        fields = _section(path, content, section) if section else content
        for name in fields:
            if name not in known.split():
                key = f"{section}.{name}".lstrip(".")
                raise ReleaseError(f"{path}: unknown field {key}; known are {', '.join(known.split())}")
    version, norm = content.get("schema_version", 1), _section(path, content, "extraction").get("norm", "none")
    if version not in SCHEMA_VERSIONS:
        raise ReleaseError(f"{path}: schema_version is {version!r}, this reader knows {SCHEMA_VERSIONS}: update nla")
    if norm != "none":
        raise ReleaseError(f"{path}: extraction.norm is {norm!r}, expected 'none': activations are read raw")


def _one(path: Path, fact: str, spellings: dict[str, Any]) -> Any:
    """The value that all spellings agree on."""
    stated = {key: value for key, value in spellings.items() if value is not None}
    if len(set(stated.values())) != 1:
        raise ReleaseError(f"{path}: {fact} must be stated once or in agreement, found {stated or 'nothing'}")
    return next(iter(stated.values()))


def _text(path: Path, key: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ReleaseError(f"{path}: {key} is {value!r}, expected text")
    return value


def _templates(path: Path, content: dict[str, Any]) -> dict[str, str]:
    given = _section(path, content, "prompt_templates")
    templates = {}
    for new, older in OLDER.items():
        names = [name for name in (new, older) if given.get(name) is not None]
        texts = {f"prompt_templates.{name}": _text(path, f"prompt_templates.{name}", given[name]) for name in names}
        if texts:
            templates[new] = _one(path, f"prompt_templates.{new}", texts)
    return templates


def _parents(value: Any) -> tuple[str, ...]:
    """Free form in the wild: a list, a mapping, one name."""
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else [value]
    return tuple(str(item) for item in items if item is not None)


def _section(path: Path, content: dict[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key)
    value = {} if value is None else value
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
        "critic.num_hidden_layers": critic.get("num_hidden_layers"),  # the layer l, not the count, as in the next
        "ar.num_hidden_layers": ar.get("num_hidden_layers"),
    }
    layers = {key: _whole(path, key, value, least=0) for key, value in spellings.items() if value is not None}
    return _one(path, "the layer", layers)


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
        **({"base_revision": metadata.base_revision} if metadata.base_revision else {}),
        "d_model": metadata.d_model,
        "extraction_layer_index": metadata.layer,
        "extraction": extraction,
        "tokens": dict(metadata.tokens),
        "prompt_templates": dict(metadata.templates),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if metadata.role == "ar":
        content["critic"] = {"extraction_layer_index": metadata.layer}  # what the released critic and others read
    if metadata.parents:
        content["parent_checkpoints"] = list(metadata.parents)
    if metadata.training:
        content["training"] = metadata.training
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    files.write_text(folder / METADATA, text)


def check_token(path: Path, tokens: Mapping[str, Any], key: str, live: object) -> None:
    """A recorded token fact must equal the live tokenizer's. Raises ReleaseError with expected and found."""
    if tokens.get(key) is not None and tokens[key] != live:
        raise ReleaseError(
            f"{path / METADATA}: tokens.{key} was recorded as {tokens[key]!r}, this tokenizer gives {live!r}: "
            "tokenizer or chat template has drifted; use the files saved beside the weights"
        )
