"""Per-token records and their JSON, `tokens.json`: all that the page shows of a text. Schema: docs/guides/report.md.

Where a key means what it means in Neuronpedia's records of explanations it has the same name: `layer_index`, `results`,
`token`, `token_id`, `position`, `l2_norm`, `description`, `mse`, `cosine_similarity`.
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nla import files
from nla.errors import DataError

FORMAT, VERSION = "nla-tokens", 1
DIGITS = 4  # of the numbers in the file


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of an explanation, as a span of characters, and what it is worth."""

    start: int
    end: int
    contribution: float  # relative error without it - relative error; negative: it does harm


@dataclass(frozen=True, slots=True)
class Wrong:
    """The explanation of another token of the text: the one whose reconstruction lies nearest to this activation."""

    position: int
    relative_error: float


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """A sampled explanation; None and the error of an orthogonal vector if malformed."""

    description: str | None
    relative_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRecord:
    """What the pair says of one activation. Spans and positions count from 0; `end` is exclusive.

    `mse` is the error of the explanation's reconstruction at scale sqrt(d), `mse_of_mean` that of the mean activation;
    `relative_error` is their ratio: 0 perfect, 1 no better than the mean.
    """

    token: str
    token_id: int
    position: int
    start: int  # of the token's characters in the text
    end: int
    l2_norm: float
    description: str | None  # the explanation; None: malformed
    mse: float
    mse_of_mean: float
    relative_error: float
    cosine_similarity: float
    sentences: list[Sentence] = field(default_factory=list)
    nearest_wrong: Wrong | None = None
    next_words: list[tuple[str, float]] = field(default_factory=list)  # the target's own, with their probabilities
    samples: list[SampleRecord] = field(default_factory=list)
    agreement: float | None = None  # of the samples, at most 1
    remark: str | None = None  # how the activation is unlike those of the training


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRecord:
    """A text as one pair explained it, every ordinary token of it.

    `mean`: where the mean activation comes from: `training`, `text` (its own tokens), or `given`. `left_out`: tokens beyond the cap.
    """

    name: str
    text: str
    model: str
    revision: str | None
    layer_index: int
    pair: str
    stage: str | None
    mean: str
    results: list[TokenRecord]
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """The content of tokens.json; texts may be of several pairs or layers. `program`: what made it, e.g. `nla 0.1.0`."""

    texts: list[TextRecord]
    program: str = ""

    def to_json(self) -> str:
        """One JSON object; numbers have four significant digits, so that a large file stays small."""
        plain = {"format": FORMAT, "version": VERSION, "program": self.program}
        plain["texts"] = [_short(dataclasses.asdict(text)) for text in self.texts]
        return json.dumps(plain, ensure_ascii=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str, source: str = "records") -> "Report":
        """Raises DataError for another format or version, and for a record that lacks a key or holds another type."""
        try:
            plain = json.loads(text)
        except ValueError as error:
            raise DataError(f"{source}: no JSON ({error}); give a tokens.json that nla report has written") from error
        if not isinstance(plain, dict) or plain.get("format") != FORMAT:
            raise DataError(f"{source}: its format is not {FORMAT!r}: give a tokens.json that nla report has written")
        if plain.get("version") != VERSION:
            raise DataError(
                f"{source}: version {plain.get('version')!r} of the format, this nla reads {VERSION}: write it again "
                "with nla report, or read it with the version that wrote it"
            )
        try:
            return cls(_value(list[TextRecord], plain.get("texts")), _value(str, plain.get("program", "")))
        except ValueError as error:
            raise DataError(f"{source}: {error} (docs/guides/report.md has the schema)") from error


def read_report(paths: Sequence[Path]) -> Report:
    """The records of one or more files, their texts one after the other. Raises DataError."""
    reports = []
    for path in paths:
        try:
            reports.append(Report.from_json(path.read_text(encoding="utf-8"), str(path)))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read ({error})") from error
    return Report([text for report in reports for text in report.texts], reports[0].program if reports else "")


def write_records(report: Report, path: Path) -> None:
    files.write_text(path, report.to_json() + "\n")


def _short(value: Any) -> Any:
    """Floats with few digits; those that JSON has no form for as null, keys that hold nothing left out."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {
            name: _short(child) for name, child in value.items() if child not in ([], None) or name == "description"
        }
    return [_short(child) for child in value] if isinstance(value, (list, tuple)) else value


def _value(kind: Any, value: Any, name: str = "texts") -> Any:
    """The value as the annotated type. Raises ValueError that names the key."""
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        inner = next(option for option in typing.get_args(kind) if option is not type(None))
        return None if value is None else _value(inner, value, name)
    if origin is list and isinstance(value, list):
        return [_value(typing.get_args(kind)[0], child, f"{name}[{index}]") for index, child in enumerate(value)]
    if origin is tuple and isinstance(value, list) and len(value) == len(typing.get_args(kind)):
        return tuple(_value(part, child, name) for part, child in zip(typing.get_args(kind), value, strict=True))
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = typing.get_type_hints(kind)
        missing = [
            item.name
            for item in dataclasses.fields(kind)
            if item.name not in value
            and item.default is dataclasses.MISSING
            and item.default_factory is dataclasses.MISSING
            and type(None) not in typing.get_args(hints[item.name])
        ]
        if missing:
            raise ValueError(f"{name} lacks {missing[0]!r}")
        known = {item.name for item in dataclasses.fields(kind)}
        optional = {item: None for item in known if type(None) in typing.get_args(hints[item])}
        given = {key: _value(hints[key], child, f"{name}.{key}") for key, child in value.items() if key in known}
        return kind(**{**optional, **given})
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if origin is None and kind in (int, str) and isinstance(value, kind) and not isinstance(value, bool):
        return value
    raise ValueError(f"{name}: expected {kind if origin else kind.__name__}, found {str(value)[:40]!r}")
