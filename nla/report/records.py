"""Per-token records and their JSON, `tokens.json`: all that the page shows of a text. Schema: docs/guides/report.md.

Where a key means what it means in Neuronpedia's records of explanations it has the same name: `layer_index`, `results`,
`token`, `token_id`, `position`, `l2_norm`, `description`, `mse`, `cosine_similarity`.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from nla import files
from nla.errors import DataError

FORMAT, VERSION = "nla-tokens", 1
DIGITS = 4  # of the numbers in the file
OPTIONAL = ("sentences", "nearest_wrong", "next_words", "samples", "agreement", "remark")


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

    `mean`: where the mean activation comes from: `training`, `text` (its own tokens), or `given`. `left_out`: tokens
    beyond the cap.
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
    """The content of tokens.json; texts may be of several pairs or layers. `program`: what made it, `nla 0.1.0`."""

    texts: list[TextRecord]
    program: str = ""

    def to_json(self) -> str:
        """One JSON object; numbers have four significant digits, so that a large file stays small."""
        plain: dict[str, Any] = {"format": FORMAT, "version": VERSION, "program": self.program}
        plain["texts"] = [_short(text) for text in self.texts]
        return json.dumps(plain, ensure_ascii=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str, source: str = "records") -> "Report":
        """Raises DataError for another format or version, and for a record that lacks a key or holds another type."""
        remedy = "give a tokens.json that nla report or evaluate.py has written (docs/guides/report.md has the schema)"
        try:
            head = TypeAdapter(_Head).validate_json(text)
            if head.format != FORMAT:
                raise DataError(f"{source}: its format is {head.format!r}, not {FORMAT!r}: {remedy}")
            if head.version != VERSION:
                raise DataError(
                    f"{source}: version {head.version} of the format, this nla reads {VERSION}: write it again, or "
                    "read it with the nla that wrote it"
                )
            return TypeAdapter(cls).validate_json(text, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            raise DataError(f"{source}: {place}: {first['msg']}: {remedy}") from error


@dataclass(frozen=True, slots=True)
class _Head:
    format: str = ""
    version: int = 0


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
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, report.to_json() + "\n")


def _short(value: Any) -> Any:
    """Records as objects, floats with few digits, null for what JSON has no number for; empty optional parts go."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # half a surrogate pair is no character
    if dataclasses.is_dataclass(value):
        parts = [(name, getattr(value, name)) for name in value.__dataclass_fields__]
        return {name: _short(part) for name, part in parts if name not in OPTIONAL or part not in ([], None)}
    return [_short(child) for child in value] if isinstance(value, (list, tuple)) else value
