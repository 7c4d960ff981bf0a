"""What a composed config must look like. Every mistake is one line with the key, the value, the rule and the fix.

Nothing is loaded here but a model's config.json. Nodes with a `_target_` are checked against the constructor they name
(`nla.config.targets`); an unread key is refused everywhere.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ValidationError

from nla.config.schema import DataSettings, EvaluateSettings, ModelSettings, Settings, TrainSettings
from nla.config.targets import check_components, suggestion
from nla.config.trainer import check_trainer, with_strategy
from nla.errors import ConfigError, ModelError
from nla.files import no_texts, texts_at
from nla.models.backbone import QUANTIZED, resolve
from nla.models.pretrained.hub import packaged_pair, remedy
from nla.models.pretrained.loading import HALVES
from nla.models.pretrained.metadata import METADATA

STAGE_INJECTED, LOGGER_INJECTED = ("nla", "target"), ("save_dir",)  # what code passes beside the config
S = TypeVar("S", bound=Settings)

WHILE_TRAINING = "nla.data.teachers.TargetTeacher"  # the teacher that may write texts when their row is due


def check_train(cfg: DictConfig) -> TrainSettings:
    """Everything about a training config that can be known without loading weights. Raises ConfigError, ModelError."""
    settings = parse(TrainSettings, plain_config(cfg))
    for number, stage in enumerate(settings.stages):
        if stage not in settings.stage:
            known = f"known are {', '.join(settings.stage)}"
            raise ConfigError(f"stages[{number}]={stage}: no such stage, {known}{suggestion(stage, settings.stage)}")
    check_data(settings.data)
    for name, stage in settings.stage.items():
        undecided = {"gather": "once"} if stage.arguments.get("gather") == "auto" == settings.hardware.gather else {}
        check_components(stage.arguments | undecided, f"stage.{name}", STAGE_INJECTED)
        check_trainer(stage.trainer, f"stage.{name}.trainer")
    for group in ("callbacks", "sampling", "reward"):
        check_components(getattr(settings, group), group)
    for name, logger in settings.logger.items():
        check_components(logger, f"logger.{name}", LOGGER_INJECTED)
    check_trainer(settings.hardware.trainer, "hardware.trainer")
    with_strategy(settings.hardware.trainer, settings.adapter.kind)
    if settings.nla is None:
        settings.layer.block(model_depth(settings.model))
    else:
        check_pair(settings.nla)
    if settings.model.dtype == QUANTIZED and settings.adapter.kind != "lora":
        raise ConfigError(f"model.dtype={QUANTIZED}: weights in 4 bits cannot be trained themselves; use adapter=lora")
    return settings


def check_evaluate(cfg: DictConfig) -> EvaluateSettings:
    """The same for an evaluation. Raises ConfigError."""
    settings = parse(EvaluateSettings, plain_config(cfg))
    if settings.data is not None:
        check_data(settings.data)
    check_components(settings.evaluation, "evaluation")
    check_trainer(settings.hardware.trainer, "hardware.trainer")
    check_pair(settings.nla)
    return settings


def plain_config(cfg: DictConfig, unneeded: Sequence[str] = ()) -> dict[str, Any]:
    """Resolved, as plain containers. Raises ConfigError for a key that is not set or cannot be resolved.

    An `unneeded` key that is not set becomes null.
    """
    for key in unneeded:
        parent, _, name = key.rpartition(".")
        if OmegaConf.is_missing(OmegaConf.select(cfg, parent), name):
            OmegaConf.update(cfg, key, None)
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        missing = re.search(r"[Mm]issing mandatory value:? *(\S+)", str(error))
        if missing is not None or isinstance(error, MissingMandatoryValue):
            key = missing.group(1) if missing else str(error.full_key)
            raise ConfigError(f"{key} is not set: add {key}=<value>") from error
        raise ConfigError(f"{error.full_key or 'config'}: {str(error).splitlines()[0]}") from error
    if not isinstance(plain, dict):
        raise ConfigError("the config must be a mapping")
    return {str(key): value for key, value in plain.items()}


def model_depth(model: ModelSettings) -> int:
    """Number of blocks, from config.json alone. Raises ConfigError for a missing folder, ModelError for the rest."""
    if model.path is not None and not (Path(resolve(model.path)) / "config.json").is_file():
        raise ConfigError(f"model.path={model.path}: no model in this folder; it must hold config.json or a GGUF file")
    if model.shape is not None:
        return model.shape.num_hidden_layers
    return int(text_config(model).num_hidden_layers)


def text_config(model: ModelSettings) -> Any:
    """The language model's part of config.json, fetched where it is on the hub. Raises ModelError with the remedy.

    Raises ConfigError where `model.shape` differs from it.
    """
    from transformers import AutoConfig

    try:
        loaded = AutoConfig.from_pretrained(resolve(model.id), revision=model.revision, trust_remote_code=False)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError... for a wrong id
        reason = remedy(error, model.id, model.revision)
        raise ModelError(f"model.id={model.id}: cannot be found ({reason}); give a folder or a hub id") from error
    config = loaded.get_text_config()
    for key, value in (model.shape.model_dump() if model.shape is not None else {}).items():
        actual = getattr(config, key, value)
        if actual != value:
            raise ConfigError(
                f"model.shape.{key}={value}: {model.id} has {actual}; correct it, or set model.shape=null for a model "
                "without a config of its own"
            )
    return config


def check_pair(pair: str) -> None:
    """Raises ConfigError for a folder that holds no saved pair; a hub id is left to the loader."""
    folder = packaged_pair(pair) or Path(pair)
    hub_like = re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", pair) is not None and not folder.parent.exists()
    if not folder.is_dir() and not hub_like:
        raise ConfigError(f"nla={pair}: no such folder; give a saved pair, e.g. nla=runs/world/nla, or a hub id")
    holds = any((folder / name).exists() for name in (HALVES[0], METADATA)) or any(folder.glob("*/nla/verbalizer"))
    if folder.is_dir() and not holds:
        raise ConfigError(f"nla={pair}: holds no folders verbalizer and reconstructor; did you mean {pair}/nla?")


def check_data(data: DataSettings, trusted: bool = True) -> None:
    """Raises ConfigError for a missing path, and for a source whose class does not take its keys."""
    if data.path is not None and texts_at(data.path) is None:
        raise ConfigError(f"data.path={data.path}: {no_texts(data.path)}")
    if "_target_" not in data.source:
        raise ConfigError("data.source._target_ is not set: name the class of a source, e.g. nla.data.text.TextSource")
    check_components(data.source, "data.source", trusted=trusted)
    if data.teacher is None:
        return
    check_components(data.teacher, "data.teacher", trusted=trusted)
    if data.teacher.get("_target_") != WHILE_TRAINING:
        raise ConfigError(
            f"data.teacher._target_={data.teacher.get('_target_')}: only the target itself (teacher=self) writes texts "
            "while training; let nla prepare ask another teacher, and train with data=shards"
        )
    if data.source.get("explanation_column") is not None:
        raise ConfigError(
            f"data.source.explanation_column={data.source['explanation_column']}: the texts have explanations of their "
            "own, and data.teacher would write others; leave one of the two out"
        )
    if data.num_workers:
        raise ConfigError(
            f"data.num_workers={data.num_workers}: texts by data.teacher are written in the main process, beside the "
            "target; set data.num_workers=0"
        )


def parse(schema: type[S], plain: dict[str, Any]) -> S:
    try:
        return schema.model_validate(plain)
    except ValidationError as error:
        raise ConfigError(_message(error, plain)) from error


def _message(error: ValidationError, plain: dict[str, Any]) -> str:
    first = error.errors()[0]
    steps = [step for step in first["loc"] if step not in ("full", "lora")]  # the adapter's kind is no key
    key = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")
    others = f" ({error.error_count()} mistakes in all)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = [known for known in dotted_keys(plain) if known != key]
        return f"{key}: nothing reads this key{suggestion(key, known)}; remove it or correct its name{others}"
    if first["type"] == "missing":
        return f"{key} is not set: add {key}=<value>{others}"
    return f"{key}={first['input']!r}: {first['msg'].removeprefix('Value error, ')}{others}"


def dotted_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Every key of nested mappings, inner nodes included."""
    if isinstance(node, Mapping):
        for name, child in node.items():
            key = f"{prefix}{name}"
            yield key
            yield from dotted_keys(child, f"{key}.")
