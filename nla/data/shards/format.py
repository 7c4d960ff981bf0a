"""One file of prepared activations: Parquet with the released code's columns, its facts beside it in YAML.

    <file>.parquet                 activation_vector: fixed_size_list<float32>[d_model], raw, and its origin
    <file>.parquet.nla_meta.yaml   base model, layer, width, rows

Pages have checksums, without which a flipped bit would go unnoticed; they are verified at every read, and right after
writing. A vector is never a Python list: columns are passed to NumPy without conversion.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from jaxtyping import Bool, Float, Int

from nla import files
from nla.errors import DataError, first_line
from nla.models.pretrained.metadata import read_yaml

VECTOR, TOKENS, LAYER, DOCUMENT = "activation_vector", "n_raw_tokens", "activation_layer", "doc_id"
TEXT, EXPLANATION, STATUS = "detokenized_text_truncated", "api_explanation", "explanation_status"
PROMPT, RESPONSE = "prompt", "response"  # in files that the released code built for training
SIDECAR = ".nla_meta.yaml"
GROUP_ROWS = 1024  # of a row group, the unit of reading
FAR = 1e6  # times the median norm: not an activation of the same layer
BAD_SHARE = 0.001  # of the rows may be dropped; a larger share means that the data are wrong


@dataclass(frozen=True, slots=True)
class Facts:
    """The recorded facts about a file of activations."""

    base_model: str
    d_model: int
    layer: int
    rows: int | None = None  # None if not recorded, as in files of the released code
    corpus: str | None = None
    positions_per_document: int | None = None
    base_revision: str | None = None
    settings: str | None = None  # hash of the preparation's settings


def activation_table(
    vectors: Float[np.ndarray, "batch d_model"],
    layer: int,
    tokens: Int[np.ndarray, " batch"],
    documents: list[str],
    texts: list[str],
) -> pa.Table:
    """Rows of one layer. `tokens` counts tokens up to and including the one read, with special ones."""
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    return pa.table(
        {
            VECTOR: pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
            TOKENS: pa.array(tokens.astype(np.int32)),
            LAYER: pa.array(np.full(len(vectors), layer, np.int32)),
            DOCUMENT: pa.array(documents, pa.string()),
            TEXT: pa.array(texts, pa.string()),
        }
    )


def vectors(table: pa.Table) -> Float[np.ndarray, "batch d_model"]:
    """The activation column as an array, without null rows."""
    column = table.column(VECTOR).combine_chunks()
    flat = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    return flat.flatten().to_numpy(zero_copy_only=False).reshape(-1, flat.type.list_size)


def write_table(table: pa.Table, path: Path) -> None:
    """Write a scratch file, read it back with checksums, rename it. Raises DataError if the disk does not keep it."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            table, scratch, row_group_size=GROUP_ROWS, compression="zstd", compression_level=1, write_page_checksum=True
        )
        with open_parquet(scratch) as file:
            rows = sum(file.read_row_group(group).num_rows for group in range(file.num_row_groups))
        with scratch.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise DataError(
            f"{path}: cannot be written ({first_line(error)}); free the disk, the same command continues"
        ) from error
    if rows != table.num_rows:
        raise DataError(f"{path}: {table.num_rows} rows were written, {rows} read back; the disk does not keep them")


def write_facts(path: Path, facts: Facts, more: Mapping[str, Any] | None = None) -> None:
    """The YAML beside a file, in the released code's form; plain types only. `more` is added unchanged."""
    extraction: dict[str, Any] = {
        "base_model": facts.base_model,
        "d_model": facts.d_model,
        "layer_index": facts.layer,
        "norm": "none",
        "corpus": facts.corpus,
        "positions_per_doc": facts.positions_per_document,
    }
    content: dict[str, Any] = {"kind": "nla_dataset", "schema_version": 1, "extraction": extraction}
    if facts.base_revision is not None:
        content["base_revision"] = facts.base_revision
    if facts.rows is not None:
        content["rows"] = facts.rows
    if facts.settings is not None:
        content["settings"] = facts.settings
    content |= more or {}
    files.write_text(sidecar(path), yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120))


def sidecar(path: Path) -> Path:
    return path.with_name(path.name + SIDECAR)


def read_facts(path: Path) -> Facts:
    """The YAML beside a file. Raises DataError that names key, value and rule; runs no code."""
    beside = sidecar(path)
    if not beside.is_file():
        raise DataError(f"{path} has no {beside.name} beside it, so its model and layer are unknown: restore that file")
    content = read_yaml(beside)
    if content.get("kind") != "nla_dataset":
        raise DataError(f"{beside}: kind is {content.get('kind')!r}, expected 'nla_dataset'")
    extraction = content.get("extraction")
    if not isinstance(extraction, dict):
        raise DataError(f"{beside}: extraction is {extraction!r}, expected a mapping")
    if extraction.get("norm", "none") != "none":
        raise DataError(f"{beside}: extraction.norm is {extraction['norm']!r}, expected 'none': activations are raw")
    base = extraction.get("base_model")
    if not isinstance(base, str) or not base:
        raise DataError(f"{beside}: extraction.base_model is {base!r}, expected the id of the model that was read")
    rows = content.get("rows")
    return Facts(
        base_model=base,
        d_model=_whole(beside, "extraction.d_model", extraction.get("d_model"), 1),
        layer=_whole(beside, "extraction.layer_index", extraction.get("layer_index"), 0),
        rows=None if rows is None else _whole(beside, "rows", rows, 0),
        corpus=None if extraction.get("corpus") is None else str(extraction["corpus"]),
        base_revision=None if content.get("base_revision") is None else str(content["base_revision"]),
        settings=None if content.get("settings") is None else str(content["settings"]),
    )


def _whole(path: Path, key: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise DataError(f"{path}: {key} is {value!r}, expected a whole number of at least {least}")
    return value


def open_parquet(path: Path) -> pq.ParquetFile:
    """Raises DataError for a file that is missing, empty, cut short or not Parquet."""
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file ({first_line(error)}); {REMEDY}") from error


REMEDY = "prepare it again (nla prepare replaces damaged shards), or restore it"


def read_group(path: Path, group: int, columns: list[str] | None = None) -> pa.Table:
    """One row group, its pages verified. Raises DataError that names file and row group."""
    with open_parquet(path) as file:
        try:
            return file.read_row_group(group, columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}, row group {group}: damaged ({first_line(error)}); {REMEDY}") from error


def group_sizes(path: Path) -> list[int]:
    """Rows of each row group, from the footer alone."""
    with open_parquet(path) as file:
        return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


def check_file(path: Path) -> Facts:
    """Check that footer, columns and metadata agree, without reading rows. Raises DataError with expected and found."""
    facts = read_facts(path)
    with open_parquet(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    expected = {VECTOR: pa.list_(pa.float32(), facts.d_model), DOCUMENT: pa.string(), TEXT: pa.string()}
    for name, kind in expected.items():
        if name not in schema.names:
            raise DataError(f"{path} has no column {name}, only {', '.join(schema.names)}")
        actual = schema.field(name).type
        if name != VECTOR and actual == pa.large_string():
            continue
        if name == VECTOR and pa.types.is_fixed_size_list(actual):
            if actual.list_size != facts.d_model:
                raise DataError(
                    f"{path}: {name} has width {actual.list_size}, {sidecar(path).name} says {facts.d_model}"
                )
            if actual.value_type == pa.float32():
                continue
        if actual != expected[name]:
            raise DataError(f"{path}: column {name} is {actual}, expected {_spelled(kind)}")
    if facts.rows is not None and facts.rows != rows:
        raise DataError(f"{path}: {rows} rows, {sidecar(path).name} says {facts.rows}; {REMEDY}")
    return facts


def _spelled(kind: pa.DataType) -> str:
    return f"fixed_size_list<float>[{kind.list_size}]" if pa.types.is_fixed_size_list(kind) else str(kind)


def sound(values: Float[np.ndarray, "batch d_model"], median: float | None = None) -> Bool[np.ndarray, " batch"]:
    """Rows that can be activations: finite, not all zero, a norm of at most a million times the median."""
    with np.errstate(all="ignore"):
        norms = np.sqrt((values.astype(np.float64) ** 2).sum(1))
    good = np.isfinite(norms) & (norms > 0)
    if median is None:
        median = float(np.median(norms[good])) if good.any() else 1.0
    return good & (norms <= FAR * median)


def sound_rows(path: Path, layer: int) -> Bool[np.ndarray, " row"]:
    """Read a foreign file once and mark the usable rows. Raises DataError for a row of another layer."""
    masks = []
    for group in range(len(group_sizes(path))):
        with open_parquet(path) as file:
            names = [n for n in (VECTOR, LAYER, DOCUMENT, TEXT) if n in file.schema_arrow.names]
        table = read_group(path, group, names)
        if LAYER in names:
            layers = set(table.column(LAYER).drop_null().unique().to_pylist())
            if layers - {layer}:
                raise DataError(
                    f"{path}: rows of layer {sorted(layers - {layer})[0]}, {sidecar(path).name} says {layer}"
                )
        good = ~np.asarray(table.column(VECTOR).is_null())
        good[good] = sound(vectors(table))
        for name in names:
            good &= ~np.asarray(table.column(name).is_null())
        masks.append(good)
    return np.concatenate(masks) if masks else np.zeros(0, bool)


def check_share(bad: int, rows: int, where: object) -> None:
    """Raises DataError if more than 0.1 % of the rows are unusable."""
    if bad > BAD_SHARE * rows:
        raise DataError(
            f"{where}: {bad} of {rows} rows are not activations (null, not finite, zero, or a norm far off); at most "
            f"{BAD_SHARE:.1%} may be dropped: prepare the data again, in float32 or bfloat16"
        )
