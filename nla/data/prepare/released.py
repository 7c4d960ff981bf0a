"""A prepared folder in the form of the released code: one file per layer and split, built for training.

`prompt` is the verbalizer's chat with `<INJECT>` for the marker, `response` the tagged explanation, as its warm start
wants them; a split that was not explained has the prompt alone, as its joint training does.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from nla.data.rows import Selection
from nla.data.shards import format
from nla.data.shards.format import EXPLANATION, PROMPT, RESPONSE
from nla.data.shards.shard_rows import Piece, ShardRows
from nla.data.shards.source import ShardSource
from nla.errors import DataError
from nla.models.explanations import CLOSE, OPEN
from nla.models.prompts import MARKER_SLOT, Templates, build_verbalizer_prompt, resolve_marker, suffix_ids

PLACEHOLDER = "<INJECT>"
CHAT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def write_released(
    source: ShardSource,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    templates: Templates,
    marker: str | int | None = None,
) -> list[Path]:
    """Write `<split>-layer-<l>.parquet` with its `.nla_meta.yaml`, row group by row group; the files.

    Of a split with explanations the explained rows are written. Raises InjectionError for a marker that does not fit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    constants = _constants(tokenizer, templates, resolve_marker(tokenizer, marker))
    message = [{"role": "user", "content": templates.verbalizer.replace(MARKER_SLOT, PLACEHOLDER)}]
    written = []
    for layer, split in sorted({(file.facts.layer, str(file.split)) for file in source.files}):
        facts = next(file.facts for file in source.files if file.facts.layer == layer)
        pieces, explained = _pieces(source, split, layer, facts.d_model)
        as_stored = Selection(split, shuffled=False, explanations=explained, documents=None, seed=0)
        path = folder / f"{split}-layer-{layer:02d}.parquet"
        _write(path, ShardRows(pieces, 1, as_stored, layer), layer, message, explained)
        format.write_facts(path, dataclasses.replace(facts, rows=None, settings=None), constants)
        written.append(path)
    return written


def _constants(tokenizer: PreTrainedTokenizerBase, templates: Templates, marker: str) -> dict[str, Any]:
    """What the released code checks against its tokenizer before it trains."""
    prompt = build_verbalizer_prompt(tokenizer, templates.verbalizer, marker)
    return {
        "tokens": {
            "injection_char": prompt.marker,
            "injection_token_id": prompt.marker_id,
            "injection_left_neighbor_id": prompt.left_id,
            "injection_right_neighbor_id": prompt.right_id,
            "critic_suffix_ids": suffix_ids(tokenizer, templates.reconstructor),
        },
        "prompt_templates": {"av": templates.verbalizer, "ar": templates.reconstructor},
    }


def _pieces(source: ShardSource, split: str, layer: int, d_model: int) -> tuple[list[Piece], bool]:
    try:
        return source.pieces(split, layer, d_model, explained=True), True
    except DataError:  # no row of it is explained; damage is met again
        return source.pieces(split, layer, d_model, explained=False), False


def _write(path: Path, rows: ShardRows, layer: int, message: list[dict[str, str]], explained: bool) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    writer, place = None, 0
    for size in rows.sizes.tolist():
        table = rows.take(place, size)
        place += size
        table = table.append_column(format.LAYER, pa.array(np.full(size, layer, np.int64)))
        table = table.append_column(PROMPT, pa.array([message] * size, CHAT))
        if explained:
            answers = [f"{OPEN}\n{text}\n{CLOSE}" for text in table.column(EXPLANATION).to_pylist()]
            table = table.append_column(RESPONSE, pa.array(answers, pa.string()))
        else:
            table = table.drop_columns([EXPLANATION])
        writer = writer or pq.ParquetWriter(scratch, table.schema, compression="zstd", write_page_checksum=True)
        writer.write_table(table)
    if writer is not None:
        writer.close()
        os.replace(scratch, path)
