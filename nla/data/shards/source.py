"""Prepared activations as a data source: folders of `nla prepare`, and unchanged shards of the released code.

    manifest.json                             the folder's files, written last
    layer-20/warm_start-00000.parquet         activations of one layer, one split and one stretch of the corpus
    explanations/warm_start-00000.parquet     the teacher's texts: the same rows in the same order, for all layers

A folder without a manifest is read as files of the released code: every `*.parquet` in it with its `.nla_meta.yaml`,
explanations in `api_explanation`, or inside the tags of `response`; a keyed hash of `doc_id` gives a row its split.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nla.data.files import check_fractions, side
from nla.data.positions import keyed_fraction, keyed_seed
from nla.data.shards import format
from nla.data.shards.format import DOCUMENT, RESPONSE, TEXT, check_file, group_sizes, read_group
from nla.data.shards.shard_rows import Piece, explanations_in, text_column
from nla.data.source import SPLITS, Document
from nla.errors import DataError

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
SCHEMA = 1
MOST_DOCUMENTS = 65536  # texts in memory for an evaluation


@dataclass(frozen=True, slots=True)
class File:
    """A file of activations of one split, or of all splits (None: from the released code)."""

    path: Path
    split: str | None
    explanations: Path | None
    facts: format.Facts


class ShardSource:
    """Activations stored by `nla prepare` or by the released code.

    Training reads the stored vectors. Evaluation, which needs the target anyway, rereads the documents of its split,
    as far as the shards contain them: up to the last position of each.

    Args:
        path: the folder.
        fractions: share of the documents per split, if the folder has no manifest; they sum to 1.
        split_key: another key gives other splits.
        shuffle_rows: rows to mix at a time: row groups are drawn in random order until they have this many rows, which
            are then shuffled. Memory: about this many activations.
    """

    def __init__(self, path: str, fractions: dict[str, float], split_key: str, shuffle_rows: int) -> None:
        self.path, self.fractions, self.split_key = Path(path), fractions, split_key
        self.shuffle_rows = shuffle_rows
        check_fractions(fractions)
        self.manifest = read_manifest(self.path)
        self.files = [check_against(file, self.manifest) for file in self._files()]
        if not self.files:
            raise DataError(f"data.path={path}: contains no shards; make some with nla prepare")
        self._sides: dict[Path, np.ndarray] = {}
        self._check_splits()

    @property
    def layers(self) -> list[int]:
        return sorted({file.facts.layer for file in self.files})

    def pieces(self, split: str, layer: int, d_model: int, explained: bool) -> list[Piece]:
        """The row groups of a split; with `explained`, only rows that have a text.

        Raises DataError for another layer or width, rows that cannot be activations, and if no row is left.
        """
        if split not in SPLITS:
            raise DataError(f"no split '{split}': there are {', '.join(SPLITS)}")
        files = [file for file in self.files if file.facts.layer == layer]
        if not files:
            known = ", ".join(map(str, self.layers))
            raise DataError(f"data.path={self.path}: holds layer {known}, not {layer}; prepare it, or set layer.index")
        pieces: list[Piece] = []
        dropped = total = 0
        for file in files:
            if file.facts.d_model != d_model:
                raise DataError(f"{file.path}: activations of width {file.facts.d_model}, the model has {d_model}")
            if file.split not in (None, split):
                continue
            usable = format.sound_rows(file.path, layer) if file.facts.rows is None else None
            if usable is not None:
                dropped, total = dropped + int((~usable).sum()), total + len(usable)
            pieces.extend(self._pieces_of(file, split, usable, explained))
        format.check_share(dropped, total, self.path)
        if dropped:
            log.warning("%s: %d of %d rows are not activations and are left out", self.path, dropped, total)
        if not pieces and explained:
            raise DataError(
                f"data.path={self.path}: no row of split '{split}' has an explanation: give a teacher to nla prepare, "
                "or set stages=[joint]"
            )
        if not pieces:
            raise DataError(f"data.path={self.path}: split '{split}' has no rows")
        return pieces

    def documents(self, split: str) -> Sequence[Document]:
        """The documents of a split, each up to its last row; of a very large split, a choice by hash.

        The hash has evaluation's key, so that the first `evaluation.documents` are the same as without the choice.
        """
        files = [file for file in self.files if file.facts.layer == self.layers[0] and file.split in (None, split)]
        names: set[str] = set()
        for file in files:
            present = {name for table in _groups(file.path, [DOCUMENT]) for name in table.column(DOCUMENT).to_pylist()}
            names |= {name for name in present if name is not None and self._side(file, name) == split}
            if len(names) > MOST_DOCUMENTS:
                names = set(sorted(names, key=lambda name: keyed_seed("evaluation", name))[:MOST_DOCUMENTS])
        longest = dict.fromkeys(sorted(names), "")
        for file in files:
            for table in _groups(file.path, [DOCUMENT, TEXT]):
                for name, text in zip(table.column(DOCUMENT).to_pylist(), table.column(TEXT).to_pylist()):
                    if text is not None and name in longest and len(text) > len(longest[name]):
                        longest[name] = text
        return [Document(name, text) for name, text in longest.items()]

    def explanation(self, document: Document, end: int, seed: int) -> str | None:
        """None: texts belong to rows, not to any place in a document."""
        return None

    def _files(self) -> Iterator[File]:
        if self.manifest is None:
            for path in sorted(self.path.glob("*.parquet")) if self.path.is_dir() else [self.path]:
                yield File(path, None, None, check_file(path))
            return
        for entry in self.manifest["files"]:
            path = self.path / entry["path"]
            texts = self.path / entry["explanations"] if entry["explanations"] else None
            facts = check_file(path)
            if facts.rows != entry["rows"] or facts.settings != self.manifest["settings"]:
                raise DataError(
                    f"{path}: {facts.rows} rows of preparation {facts.settings}, {MANIFEST} says {entry['rows']} of "
                    f"{self.manifest['settings']}: files of two preparations are mixed; {format.REMEDY}"
                )
            yield File(path, entry["split"], texts, facts)

    def _side(self, file: File, document: str) -> str:
        return file.split or side(keyed_fraction(self.split_key, document), self.fractions)

    def _check_splits(self) -> None:
        """Raises DataError if a document is in two splits."""
        if self.manifest is None:
            return  # impossible: the split depends only on the id
        seen: dict[int, str] = {}
        for file in self.files:
            if file.facts.layer != self.layers[0]:
                continue
            names = {
                name for table in _groups(file.path, [DOCUMENT]) for name in table.column(DOCUMENT).unique().to_pylist()
            }
            for name in names:
                other = seen.setdefault(keyed_seed(name), str(file.split))
                if other != file.split:
                    raise DataError(
                        f"{file.path}: document {name!r} of split {file.split} is in {other} too; a score on "
                        "it would say nothing: prepare the data again"
                    )

    def _pieces_of(self, file: File, split: str, usable: np.ndarray | None, explained: bool) -> Iterator[Piece]:
        first = 0
        for group, size in enumerate(group_sizes(file.path)):
            mask = np.ones(size, bool) if usable is None else usable[first : first + size].copy()
            first += size
            if file.split is None:
                names = read_group(file.path, group, [DOCUMENT]).column(DOCUMENT).to_pylist()
                mask &= np.array([name is not None and self._side(file, name) == split for name in names], bool)
            if explained:
                mask &= _has_text(file, group, size)
            if mask.any():
                yield Piece(file.path, group, np.flatnonzero(mask), file.explanations)


def check_against(file: File, manifest: dict[str, Any] | None) -> File:
    """Raises DataError if a file is of another model than the folder's."""
    if manifest is not None and file.facts.base_model != manifest["base_model"]:
        raise DataError(f"{file.path}: of model {file.facts.base_model}, {MANIFEST} says {manifest['base_model']}")
    return file


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest; None for a folder not made by `nla prepare`. Raises DataError for one that it did not finish."""
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / "records").is_dir():
            raise DataError(
                f"data.path={folder}: its preparation is not complete; the same nla prepare command completes it"
            )
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise DataError(f"{path}: schema {content['schema']!r}, this version reads {SCHEMA}: update nla")
        for entry in content["files"]:
            for name in (entry["path"], entry["explanations"] or "x"):
                if Path(name).is_absolute() or ".." in Path(name).parts:
                    raise DataError(f"{path}: names {name!r}, which is outside its folder")
            if entry["split"] not in SPLITS or not isinstance(entry["rows"], int):
                raise DataError(f"{path}: entry {entry['path']} has split {entry['split']!r}, rows {entry['rows']!r}")
        _ = content["base_model"], content["settings"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is not a manifest of nla prepare ({error!r}); {format.REMEDY}") from error
    return content


def _has_text(file: File, group: int, size: int) -> np.ndarray:
    path = file.explanations or file.path
    name = text_column(path)
    if name is None:
        return np.zeros(size, bool)
    column = read_group(path, group, [name]).column(name)
    column = explanations_in(column) if name == RESPONSE else column
    if len(column) != size:
        raise DataError(f"{path}, row group {group}: {len(column)} rows for {size} activations; {format.REMEDY}")
    return np.array([isinstance(text, str) and bool(text.strip()) for text in column.to_pylist()], bool)


def _groups(path: Path, columns: list[str]) -> Iterator[pa.Table]:
    for group in range(len(group_sizes(path))):
        yield read_group(path, group, columns)
