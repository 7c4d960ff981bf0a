"""A corpus, a preparation of it and what came out: shared by the tests of preparation and its faults."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nla.commands.prepare import check_prepare, prepare
from nla.config.compose import compose
from nla.data.rows import Selection
from nla.data.shards.reader import ShardReader
from nla.data.shards.shard_rows import ShardRows
from nla.data.shards.source import ShardSource

WORDS = "the quick brown fox jumps over the lazy dog and Tom walks to the harbour in the rain".split()
FRACTIONS = {"warm_start": 0.4, "joint": 0.3, "validation": 0.2, "test": 0.1}
OPTIONS = [
    "prepare.min_context=4", "prepare.positions_per_document=3", "prepare.min_characters=10",
    "prepare.documents_per_shard=16", f"prepare.fractions={{{','.join(f'{k}: {v}' for k, v in FRACTIONS.items())}}}",
]  # fmt: skip


def text(number: int) -> str:
    chosen = [WORDS[(number * 7 + place * (number % 5 + 1)) % len(WORDS)] for place in range(12 + number % 9)]
    return f"Document {number}: " + " ".join(chosen)


def write_corpus(path: Path, size: int = 60) -> Path:
    path.write_text("".join(json.dumps({"text": text(number)}) + "\n" for number in range(size)))
    return path


def settings(model: str, corpus: Path, out: Path, *overrides: str) -> Any:
    given = ["experiment=text", f"model.path={model}", "corpus=files", f"corpus.path={corpus}", f"prepare.out={out}"]
    return check_prepare(compose("prepare", [*given, *OPTIONS, *overrides]))


def run(model: str, corpus: Path, out: Path, *overrides: str) -> Path:
    return prepare(settings(model, corpus, out, *overrides))


def source(folder: Path, shuffle_rows: int = 64) -> ShardSource:
    return ShardSource(str(folder), FRACTIONS, "nla", shuffle_rows)


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def tables(folder: Path, layer: int) -> dict[str, pa.Table]:
    """Every file of a layer by name."""
    return {file.name: pq.read_table(file) for file in sorted((folder / f"layer-{layer:02d}").glob("*.parquet"))}


def all_rows(folder: Path, layer: int) -> pa.Table:
    return pa.concat_tables(tables(folder, layer).values())


def stored_rows(
    read: ShardSource, split: str, d_model: int, explanations: bool, layer: int = 1, shuffled: bool = False
) -> ShardRows:
    return ShardReader(read, layer, d_model)(Selection(split, shuffled, explanations, None, seed=0))
