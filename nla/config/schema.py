"""The shape of a composed config: every key with its type and bounds; no other key is accepted."""

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

from nla.errors import ConfigError

Scale = Annotated[float, Field(gt=0)] | Literal["sqrt_d_model"] | None
Dtype = Literal["float32", "bfloat16", "float16", "nf4"]
S = TypeVar("S", bound="Settings")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+-]{0,99}")


class Settings(BaseModel):
    """Frozen: a step that changes a value returns new settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True, protected_namespaces=())

    def changed(self: S, **updates: Any) -> S:
        """A copy with other values; `model__revision` is the key `model.revision`."""
        values: dict[str, Any] = {}
        for path, value in updates.items():
            key, _, rest = path.partition("__")
            values[key] = values.get(key, getattr(self, key)).changed(**{rest: value}) if rest else value
        return self.model_copy(update=values)


class TemplateSettings(Settings):
    verbalizer: str
    reconstructor: str


class ShapeSettings(Settings):
    """Numbers of a model's config.json under the names used there: enough to check and plan without a download."""

    model_type: str
    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    intermediate_size: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt
    vocab_size: PositiveInt
    tie_word_embeddings: bool


class ModelSettings(Settings):
    id: str
    path: str | None
    dtype: Dtype
    revision: str | None
    default_layer: int | None
    marker: str | int | None
    injection_scale: Scale
    mse_scale: Scale
    shape: ShapeSettings | None
    templates: TemplateSettings


class LayerSettings(Settings):
    index: int | None
    fraction: float | None = Field(gt=0, le=1)

    def block(self, depth: int) -> int:
        """The block meant, counted from 0, of a model with `depth` blocks. Raises ConfigError."""
        if self.index is None and self.fraction is None:
            raise ConfigError("layer.index and layer.fraction are null: choose e.g. layer=middle or layer.index=2")
        block = min(round((self.fraction or 0) * depth), depth - 1) if self.index is None else self.index
        if not 0 <= block < depth:
            raise ConfigError(
                f"layer.index={block}: the model has {depth} blocks, counted from 0; choose 0 to {depth - 1}, "
                "or a fraction (layer=early, middle, two_thirds, late)"
            )
        return block


class FullAdapter(Settings):
    kind: Literal["full"]


class LoraAdapter(Settings):
    kind: Literal["lora"]
    rank: PositiveInt
    alpha: float = Field(gt=0)
    dropout: float = Field(ge=0, lt=1)


class DataSettings(Settings):
    path: str | None
    source: dict[str, Any]
    positions_per_document: PositiveInt
    min_context: int = Field(ge=0)
    early: float = Field(0.0, ge=0, le=1)
    max_tokens: PositiveInt
    validation_documents: PositiveInt | None
    num_workers: int = Field(ge=0)
    teacher: dict[str, Any] | None = None  # asked while training; none: the source's own texts


class StageData(Settings):
    split: Literal["warm_start", "joint"]
    explanations: bool
    batch_size: PositiveInt
    positions_per_document: PositiveInt
    min_context: int = Field(ge=0)
    early: float = Field(0.0, ge=0, le=1)


class StageSettings(Settings):
    """A stage: what its constructor takes (`arguments`), and beside it the data and the Trainer that it runs with."""

    model_config = ConfigDict(extra="allow")
    data: StageData
    trainer: dict[str, Any]
    steps: PositiveInt

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the stage's constructor, with `_target_`."""
        return {"steps": self.steps, **(self.model_extra or {})}


class HardwareSettings(Settings):
    trainer: dict[str, Any]
    micro_batch_size: PositiveInt
    activation_checkpointing: bool
    gather: Literal["auto", "once", "blocks"]


class TrainSettings(Settings):
    name: str
    seed: int = Field(ge=0, lt=2**32)
    stages: list[str] = Field(min_length=1)
    nla: str | None
    preflight: bool
    run_dir: str
    model: ModelSettings
    layer: LayerSettings
    adapter: Annotated[FullAdapter | LoraAdapter, Field(discriminator="kind")]
    data: DataSettings
    sampling: dict[str, Any]
    reward: dict[str, Any]
    stage: dict[str, StageSettings]
    hardware: HardwareSettings
    callbacks: dict[str, dict[str, Any] | None]
    logger: dict[str, dict[str, Any] | None]

    @field_validator("name")
    @classmethod
    def _folder_name(cls, name: str) -> str:
        if not NAME.fullmatch(name) or ".." in name:
            raise ValueError("must be a plain folder name: up to 100 letters, digits, and . _ - + = ,")
        return name


class EvaluateSettings(Settings):
    nla: str
    dtype: Dtype | None
    seed: int = Field(ge=0, lt=2**32)
    output: str | None
    data: DataSettings | None = None
    evaluation: dict[str, Any]
    hardware: HardwareSettings
