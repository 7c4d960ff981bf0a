"""Rows of a person's files, one after the other: UTF-8 texts, and tables (Parquet, JSONL, JSON, CSV, TSV).

What is no text is skipped and counted by reason; what may be used for the rest of a document's way is asked of `fault`.
"""

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from nla.data.source import SPLITS, Row
from nla.errors import ConfigError, DataError, first_line
from nla.files import no_texts, texts_at

TABLES = (".parquet", ".jsonl", ".json", ".csv", ".tsv")
COMPRESSED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zX": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
ROWS_AT_ONCE = 1024  # of a Parquet file


@dataclass(frozen=True, slots=True)
class Columns:
    """Names in Parquet and JSONL rows; plain files have only their text."""

    text: str
    explanation: str | None = None
    id: str | None = None

    def names(self) -> list[str]:
        return [name for name in (self.text, self.explanation, self.id) if name is not None]


def corpus_path(path: str, key: str) -> Path:
    """A path that exists: a file, a folder, or the texts of an installed package. Raises DataError naming `key`."""
    found = texts_at(path)
    if found is None:
        raise DataError(f"{key}={path}: {no_texts(path)}")
    return found


def corpus_files(path: Path) -> list[Path]:
    """The file itself, or every file of a folder in the order of names, hidden ones left out."""
    if not path.is_dir():
        return [path]
    found = (file for file in path.rglob("*") if file.is_file())
    return sorted(f for f in found if not any(part.startswith(".") for part in f.relative_to(path).parts))


def read_files(path: Path, columns: Columns, skipped: Counter[str]) -> Iterator[Row]:
    """Every row, always in the same order. Raises DataError for a file that cannot be read or lacks a column."""
    for file in corpus_files(path):
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        if file.suffix.lower() in TABLES:
            yield from named_rows(name, _table_rows(file, columns.names(), skipped), columns, where=file)
            continue
        content = _bytes(file)
        packed = next((kind for magic, kind in COMPRESSED.items() if content.startswith(magic)), None)
        try:
            text = content.decode("utf-8-sig") if packed is None else None
        except UnicodeDecodeError:
            text = None
        if text is None:
            skipped["not UTF-8" if packed is None else f"{packed} archive: unpack it first"] += 1
        else:
            yield Row(name, text)


def _table_rows(file: Path, columns: list[str], skipped: Counter[str]) -> Iterator[dict[str, Any]]:
    kind = file.suffix.lower()
    if kind == ".parquet":
        return parquet_rows(file, columns)
    if kind in (".csv", ".tsv"):
        return _csv_rows(file, columns, "\t" if kind == ".tsv" else ",")
    return _jsonl_rows(file, skipped) if kind == ".jsonl" else _json_rows(file, skipped)


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}; check its permissions") from error


def named_rows(name: str, rows: Iterable[Mapping[str, Any]], columns: Columns, where: object) -> Iterator[Row]:
    """Rows with ids `<name>:<number>`. Raises DataError for a column that is not there."""
    for number, row in enumerate(rows):
        for column in columns.names():
            if column not in row:
                raise DataError(no_column(where, column, list(row)))
        given = row[columns.explanation] if columns.explanation is not None else None
        content = row[columns.text]
        yield Row(
            id=f"{name}:{number}",
            content=content.removeprefix("\ufeff") if isinstance(content, str) else content,
            origin=None if columns.id is None else str(row[columns.id]),
            explanation=(given.strip() or None) if isinstance(given, str) else None,
        )


def parquet_rows(file: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file, its page checksums verified where it has some. Raises DataError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as table:
            missing = [column for column in columns if column not in table.schema_arrow.names]
            if missing:
                raise DataError(no_column(file, missing[0], table.schema_arrow.names))
            for batch in table.iter_batches(ROWS_AT_ONCE, columns=columns):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = first_line(error)
        raise DataError(f"{file} is not a readable Parquet file ({reason}); write it again or remove it") from error


def _csv_rows(file: Path, columns: list[str], separator: str) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    from pyarrow import csv

    try:
        with csv.open_csv(
            file,
            parse_options=csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string())),
        ) as table:
            for batch in table:
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = first_line(error)
        raise DataError(f"{file} is not a readable table ({reason}); write it again, or as JSONL") from error


def _json_rows(file: Path, skipped: Counter[str]) -> Iterator[dict[str, Any]]:
    """A list of objects; one that holds a value a line is read as JSONL."""
    try:
        rows = json.loads(_bytes(file).decode("utf-8-sig"))
    except UnicodeDecodeError:
        skipped["not UTF-8"] += 1
        return
    except (ValueError, RecursionError):
        yield from _jsonl_rows(file, skipped)
        return
    for row in rows if isinstance(rows, list) else [None]:
        if isinstance(row, dict):
            yield row
        else:
            skipped["not a list of JSON objects"] += 1


def normalized(text: str) -> str:
    """What copies have in common: the same characters (NFKC), cases and white space apart."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _jsonl_rows(file: Path, skipped: Counter[str]) -> Iterator[dict[str, Any]]:
    with file.open("rb") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                yield row
            else:
                skipped["not a JSON object"] += 1


def fault(text: str, min_characters: int) -> str | None:
    """Why a text cannot be read by a model; None where it can."""
    if not text:
        return "empty"
    if not text.strip():
        return "white space only"
    if "\0" in text:
        return "NUL character"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "lone surrogate"
    return "too short" if len(text.strip()) < min_characters else None


def side(fraction: float, fractions: Mapping[str, float]) -> str:
    """The split of a document whose keyed fraction this is."""
    reached = 0.0
    for split in SPLITS:
        reached += fractions.get(split, 0.0)
        if fraction < reached:
            return split
    # the sum fell short of 1 by rounding
    return next(split for split in reversed(SPLITS) if fractions.get(split, 0.0) > 0)


def check_fractions(fractions: Mapping[str, float], key: str = "data.source.fractions") -> None:
    """Raises ConfigError unless they are shares of known splits that sum to 1."""
    unknown = [split for split in fractions if split not in SPLITS]
    if unknown:
        raise ConfigError(f"{key}.{unknown[0]}: no such split; there are {', '.join(SPLITS)}")
    if any(share < 0 for share in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ConfigError(f"{key}={dict(fractions)}: the shares must be >= 0 and sum to 1")


def no_column(where: object, column: str, columns: list[str]) -> str:
    close = get_close_matches(column, columns, 1)
    hint = f"did you mean '{close[0]}'?" if close else "name the right one (text_column, explanation_column, id_column)"
    return f"{where} has no column '{column}' but {', '.join(columns)}; {hint}"
