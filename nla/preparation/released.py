"""A prepared folder in the form of the released code: one file per layer and split, explanations in a column."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nla.data import shardfile
from nla.data.shards import ShardRows, ShardSource


def write_released(source: ShardSource, folder: Path) -> list[Path]:
    """Write `<split>-layer-<l>.parquet` with its `.nla_meta.yaml`, row group by row group; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    parts = sorted({(file.facts.layer, str(file.split)) for file in source.files})
    for layer, split in parts:
        facts = next(file.facts for file in source.files if file.facts.layer == layer)
        rows = ShardRows(source.pieces(split, layer, facts.d_model, explained=False), 1, None)
        path = folder / f"{split}-layer-{layer:02d}.parquet"
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        writer, place = None, 0
        for size in rows.sizes.tolist():
            table = rows.take(place, size)
            place += size
            table = table.append_column(shardfile.LAYER, pa.array(np.full(size, layer, np.int32)))
            writer = writer or pq.ParquetWriter(scratch, table.schema, compression="zstd", write_page_checksum=True)
            writer.write_table(table)
        if writer is not None:
            writer.close()
            os.replace(scratch, path)
            shardfile.write_facts(path, dataclasses.replace(facts, rows=None, settings=None))
            written.append(path)
    return written
