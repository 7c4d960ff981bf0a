"""A person's own text: a folder of UTF-8 files, or Parquet or JSONL with a text column.

What cannot be read is skipped and counted in `TextSource.skipped`, by reason; a corpus that keeps nothing is an error.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from nla.data.extractive import Extractive
from nla.data.positions import keyed_fraction
from nla.data.source import SPLITS, Document
from nla.errors import ConfigError, DataError

TABLES = (".parquet", ".jsonl")


class TextSource:
    """Documents under a path, split by document.

    A document's side is a keyed hash of its id (file name within the folder, or `id_column`), so that it depends
    neither on the other documents nor on the run's seed. Exact copies of a text are dropped: a copy under another name
    could land on the other side.

    Args:
        path: a folder (every file in it, tables included), or one file.
        fractions: share of the documents per split; they sum to 1.
        split_key: another key gives other splits.
        text_column: column of Parquet and JSONL rows.
        explanation_column: explanations of a row's whole text; None: the warm start uses the extractive fallback.
        id_column: rows of one document share its value; None: each row is a document.
        min_characters: shorter documents and remainders are skipped.
        max_characters: longer documents are cut into chunks of at most that many, at white space where there is some.
            Texts with an explanation of their own are never cut.
        max_documents: read no more than the first so many; None: all.
    """

    def __init__(
        self,
        path: str,
        fractions: dict[str, float],
        split_key: str,
        text_column: str,
        explanation_column: str | None,
        id_column: str | None,
        min_characters: int,
        max_characters: int,
        max_documents: int | None,
    ) -> None:
        self.path = Path(path)
        self.columns = {"text": text_column, "explanation": explanation_column, "id": id_column}
        self.min_characters, self.max_characters = min_characters, max_characters
        self.skipped: Counter[str] = Counter()
        self._fallback: Extractive | None = None
        _check_fractions(fractions)
        if not self.path.exists():
            raise DataError(f"data.path={path}: no such file or folder; give a folder of UTF-8 files, Parquet or JSONL")
        self._splits: dict[str, list[Document]] = {split: [] for split in SPLITS}
        for kept, document in enumerate(self._documents()):
            if max_documents is not None and kept >= max_documents:
                break
            side = _side(keyed_fraction(split_key, document.root), fractions)
            self._splits[side].extend(self._chunks(document))
        if not any(self._splits.values()):
            raise DataError(
                f"data.path={path} holds no usable document (skipped: {dict(self.skipped) or 'nothing found'}); "
                f"it needs UTF-8 texts of at least {min_characters} characters"
            )

    def documents(self, split: str) -> Sequence[Document]:
        if split not in self._splits:
            raise DataError(f"no split '{split}': there are {', '.join(SPLITS)}")
        return self._splits[split]

    def explanation(self, document: Document, end: int, seed: int) -> str | None:
        """The row's own explanation, at its end; in a corpus without such a column the extractive fallback."""
        if self.columns["explanation"] is not None:
            return document.explanation if end == len(document.text) else None
        if self._fallback is None:
            self._fallback = Extractive(d.text for d in self._splits["warm_start"])
        return self._fallback.explain(document.text[:end])

    def _documents(self) -> Iterator[Document]:
        """Every readable document once, in the order of the file names."""
        seen: set[str] = set()
        for document in self._read():
            fault = self._fault(document.text)
            if fault is None and document.text in seen:
                fault = "copy of another document"
            if fault is not None:
                self.skipped[fault] += 1
                continue
            seen.add(document.text)
            yield document

    def _read(self) -> Iterator[Document]:
        files = sorted(f for f in self.path.rglob("*") if f.is_file()) if self.path.is_dir() else [self.path]
        for file in files:
            name = file.relative_to(self.path).as_posix() if self.path.is_dir() else file.name
            if any(part.startswith(".") for part in Path(name).parts):
                continue
            if file.suffix in TABLES:
                rows = _parquet_rows(file, self._names()) if file.suffix == ".parquet" else self._jsonl_rows(file)
                yield from self._from_rows(name, file, rows)
                continue
            try:
                yield Document(name, file.read_bytes().decode("utf-8-sig"))
            except UnicodeDecodeError:
                self.skipped["not UTF-8"] += 1
            except OSError as error:
                raise DataError(f"{file} cannot be read: {error.strerror}; check its permissions") from error

    def _names(self) -> list[str]:
        return [name for name in self.columns.values() if name is not None]

    def _jsonl_rows(self, file: Path) -> Iterator[dict[str, Any]]:
        with file.open("rb") as lines:
            for line in lines:
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if isinstance(row, dict):
                    yield row
                else:
                    self.skipped["not a JSON object"] += 1

    def _from_rows(self, name: str, file: Path, rows: Iterable[dict[str, Any]]) -> Iterator[Document]:
        text, explanation, key = self.columns["text"], self.columns["explanation"], self.columns["id"]
        for number, row in enumerate(rows):
            missing = [column for column in self._names() if column not in row]
            if missing:
                raise DataError(_no_column(file, missing[0], list(row)))
            if not isinstance(row[text], str):
                self.skipped["text is not a string"] += 1
                continue
            given = row[explanation] if explanation is not None else None
            yield Document(
                id=f"{name}:{number}",
                text=row[text],
                origin=None if key is None else str(row[key]),
                explanation=(given.strip() or None) if isinstance(given, str) else None,
            )

    def _fault(self, text: str) -> str | None:
        if not text:
            return "empty"
        if not text.strip():
            return "white space only"
        if "\0" in text:
            return "NUL character"
        if any("\ud800" <= character <= "\udfff" for character in text):
            return "lone surrogate"
        return "too short" if len(text.strip()) < self.min_characters else None

    def _chunks(self, document: Document) -> Iterator[Document]:
        if len(document.text) <= self.max_characters or document.explanation is not None:
            yield document
            return
        for number, piece in enumerate(_pieces(document.text, self.max_characters)):
            if len(piece.strip()) >= self.min_characters:
                yield replace(document, id=f"{document.id}#{number}", text=piece, origin=document.root)
            else:
                self.skipped["chunk too short"] += 1


def _parquet_rows(file: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as table:
            missing = [column for column in columns if column not in table.schema_arrow.names]
            if missing:
                raise DataError(_no_column(file, missing[0], table.schema_arrow.names))
            for batch in table.iter_batches(columns=columns):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{file} is not a readable Parquet file ({reason}); write it again or remove it") from error


def _pieces(text: str, size: int) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = min(start + size, len(text))
        if end < len(text):
            gap = max(text.rfind(" ", start + size // 2, end), text.rfind("\n", start + size // 2, end))
            end = gap + 1 if gap > 0 else end
        yield text[start:end]
        start = end


def _side(fraction: float, fractions: dict[str, float]) -> str:
    reached = 0.0
    for split in SPLITS:
        reached += fractions.get(split, 0.0)
        if fraction < reached:
            return split
    # the sum fell short of 1 by rounding
    return next(split for split in reversed(SPLITS) if fractions.get(split, 0.0) > 0)


def _check_fractions(fractions: dict[str, float]) -> None:
    unknown = [split for split in fractions if split not in SPLITS]
    if unknown:
        raise ConfigError(f"data.source.fractions.{unknown[0]}: no such split; there are {', '.join(SPLITS)}")
    if any(share < 0 for share in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ConfigError(f"data.source.fractions={dict(fractions)}: the shares must be >= 0 and sum to 1")


def _no_column(file: Path, column: str, columns: list[str]) -> str:
    close = get_close_matches(column, columns, 1)
    hint = f"did you mean '{close[0]}'?" if close else "set data.source.text_column"
    return f"{file} has no column '{column}' but {', '.join(columns)}; {hint}"
