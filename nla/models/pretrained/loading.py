"""Load a saved pair: the halves' facts must agree with each other, the weights and the live tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nla.errors import ConfigError, InjectionError, ReleaseError
from nla.models.backbone import body, load_tokenizer, shared_copy, truncated, width
from nla.models.lora import add_lora, load_adapter, load_adapter_state, saved_adapter
from nla.models.pretrained import format as release
from nla.models.pretrained.hub import SAFE_FILES, fetch, hub_name
from nla.models.pretrained.metadata import METADATA, Metadata, check_token, read_metadata
from nla.models.prompts import Templates, build_verbalizer_prompt
from nla.models.reconstructor import Reconstructor
from nla.models.verbalizer import Verbalizer

HALVES = ("verbalizer", "reconstructor")
SAVED = "saved"
PARTNERS = (("av", "ar"), ("actor", "critic"), HALVES)  # names of the halves if each has its own repository


@dataclass(frozen=True, slots=True)
class Weights:
    """How to load a half's weights: their type, an adapter (rank, alpha, dropout), a base to share.

    Without a base, or if no adapter was saved, a half has its own weights and a fresh adapter.
    """

    dtype: str = "float32"
    adapter: dict[str, Any] | None = None
    base: PreTrainedModel | None = None

    @classmethod
    def of(
        cls, halves: Sequence[Path], dtype: str, adapter: dict[str, Any] | str | None, base: PreTrainedModel | None
    ) -> "Weights":
        """`adapter=SAVED`: that of the folders, on the base; none if either folder has none."""
        saved = [saved_adapter(half) for half in halves]
        if isinstance(adapter, str):
            if adapter != SAVED:
                raise ConfigError(f"adapter {adapter!r}: expected '{SAVED}', a mapping (rank, alpha, dropout) or None")
            adapter = saved[0] if base is not None and saved[0] == saved[1] else None
        return cls(dtype, adapter, base if adapter is not None and all(saved) else None)

    def shared(self, folder: Path) -> tuple[PreTrainedModel, dict[str, Tensor]] | None:
        """Modules around the base's weights and the saved adapter for them; None if nothing is shared."""
        if self.base is None or self.adapter is None:
            return None
        state = load_adapter_state(folder, self.adapter["rank"], self.adapter["alpha"])
        return None if state is None else (shared_copy(self.base), state)

    def adapt(self, model: PreTrainedModel, saved: dict[str, Tensor] | None) -> None:
        """Add a fresh adapter or the saved one, if there is to be one."""
        if self.adapter is not None:
            add_lora(model, **self.adapter)
        if saved is not None:
            load_adapter(model, saved)


def find_halves(
    folder: str | Path | None = None,
    verbalizer: str | Path | None = None,
    reconstructor: str | Path | None = None,
    revision: str | None = None,
    patterns: Sequence[str] = SAFE_FILES,
) -> tuple[Path, Path]:
    """Local folders of the two halves, both fetched before either is read. Raises ReleaseError.

    `folder` (or a hub id) holds both, or is one of two whose names differ in their last word: `...-av` and `...-ar`.
    A hub id may carry its revision: `org/name@revision`.
    """
    if folder is None:
        if verbalizer is None or reconstructor is None:
            raise ReleaseError("give either one folder, or both verbalizer= and reconstructor=")
        return fetch(verbalizer, revision, patterns), fetch(reconstructor, revision, patterns)
    root = fetch(folder, revision, patterns)
    if not (root / METADATA).is_file():
        return root / HALVES[0], root / HALVES[1]
    other = fetch(_partner(str(folder)), revision, patterns)
    return (root, other) if read_metadata(root).role == "av" else (other, root)


def _partner(name: str) -> str:
    stem, at, revision = name.rstrip("/").partition("@")
    for first, second in PARTNERS:
        for ending, other in ((first, second), (second, first)):
            if stem.endswith(ending):
                return f"{stem.removesuffix(ending)}{other}{at}{revision}"
    raise ReleaseError(f"{name} is one half of a pair: name both, verbalizer= and reconstructor=")


def adapters_alone(first: Path, second: Path) -> bool:
    """Whether the halves hold adapters without the weights that they belong to, as `NLA.save_adapters` writes them."""
    return all(saved_adapter(half) and not any(half.glob("model*.safetensors")) for half in (first, second))


def _tokenizer(folder: Path, about: Metadata) -> PreTrainedTokenizerBase:
    """The half's own, else the base model's."""
    if (folder / "tokenizer_config.json").is_file():
        return load_tokenizer(folder)
    return load_tokenizer(about.base_model, about.base_revision)


def parents(first: Path, second: Path, av: Metadata, ar: Metadata) -> tuple[str, ...]:
    """What training from this pair continues from: its hub ids with their commits, else its recorded parents."""
    named = [name for name in map(hub_name, (first, second)) if name is not None]
    return tuple(dict.fromkeys(named or (*av.parents, *ar.parents)))


def read_facts(first: Path, second: Path) -> tuple[Metadata, Metadata, Templates]:
    """The metadata of both halves and the prompts. Raises ReleaseError if they are not a pair."""
    av, ar = read_metadata(first), read_metadata(second)
    if (av.role, ar.role) != ("av", "ar"):
        raise ReleaseError(f"{first} has role {av.role!r} and {second} {ar.role!r}: expected av and ar, in this order")
    for key in ("d_model", "layer", "base_model"):
        if getattr(av, key) != getattr(ar, key):
            raise ReleaseError(
                f"{first} has {key} {getattr(av, key)}, {second} {getattr(ar, key)}: the two halves are not a pair"
            )
    for folder, metadata in ((first, av), (second, ar)):
        if metadata.role not in metadata.templates:
            raise ReleaseError(f"{folder / METADATA}: prompt_templates.{metadata.role} is missing")
    try:
        return av, ar, Templates(av.templates["av"], ar.templates["ar"])
    except ConfigError as error:
        raise ReleaseError(f"{first / METADATA} and {second / METADATA}: prompt_templates: {error}") from error


def load_verbalizer(folder: Path, about: Metadata, templates: Templates, weights: Weights) -> Verbalizer:
    """Raises ReleaseError: missing facts, another width, a marker or neighbours that drifted."""
    path = folder / METADATA
    if isinstance(about.injection_scale, str):
        raise ReleaseError(f"{path}: extraction.injection_scale is missing: it cannot be guessed")
    marker = about.tokens.get("injection_char")
    if not isinstance(marker, str):
        raise ReleaseError(f"{path}: tokens.injection_char is {marker!r}, expected the marker character")
    model, saved = weights.shared(folder) or (release.load_causal_lm(folder, weights.dtype), None)
    tokenizer = _tokenizer(folder, about)
    if width(model) != about.d_model:
        raise ReleaseError(f"{path}: d_model is {about.d_model}, the model beside it has {width(model)}")
    try:
        prompt = build_verbalizer_prompt(tokenizer, templates.verbalizer, marker)
    except InjectionError as error:
        raise InjectionError(f"{path}: {error}") from error
    check_token(folder, about.tokens, "injection_token_id", prompt.marker_id)
    check_token(folder, about.tokens, "injection_left_neighbor_id", prompt.left_id)
    check_token(folder, about.tokens, "injection_right_neighbor_id", prompt.right_id)
    weights.adapt(model, saved)
    return Verbalizer(model, tokenizer, prompt, about.injection_scale, templates.reconstructor)


def load_reconstructor(folder: Path, about: Metadata, templates: Templates, weights: Weights) -> Reconstructor:
    """Raises ReleaseError: no or a wrong head, blocks that do not fit the layer, a suffix that drifted."""
    head = release.load_head(folder, about.d_model)
    model, saved = weights.shared(folder) or (release.load_reconstructor(folder, weights.dtype), None)
    blocks = body(model).config.num_hidden_layers
    if width(model) != about.d_model or (saved is None and blocks != about.layer + 1):
        raise ReleaseError(
            f"{folder}: config.json has {blocks} blocks of width {width(model)}, "
            f"layer {about.layer} of width {about.d_model} needs {about.layer + 1}"
        )
    decoder = truncated(body(model), about.layer)
    weights.adapt(decoder, saved)
    reconstructor = Reconstructor(decoder, _tokenizer(folder, about), templates.reconstructor)
    recorded = about.tokens.get("critic_suffix_ids")
    if recorded:
        live = reconstructor.tokenize(["x"])[0][0].tolist()[-len(recorded) :]
        check_token(folder, about.tokens, "critic_suffix_ids", live)
    with torch.no_grad():
        reconstructor.head.weight.copy_(head)
    return reconstructor
