"""From shards to explanations: the teacher is asked about every row of some splits, once for all layers.

An explanations file holds the rows of its shard in the same order and row groups. Those that another teacher wrote, or
that a spent budget left unfinished, are made again; what was paid for comes out of the teacher's ledger.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from nla.data.prepare.folder import Folder, Record
from nla.data.shards import format
from nla.data.shards.format import DOCUMENT, EXPLANATION, STATUS, TEXT, TOKENS
from nla.data.teachers.protocol import Estimate, Passage, Teacher
from nla.errors import DataError

log = logging.getLogger(__name__)

BY = b"nla_teacher"


def explain_shards(
    teacher: Teacher,
    folder: Folder,
    records: Sequence[Record],
    splits: Sequence[str],
    rank: int = 0,
    ranks: int = 1,
    progress: Callable[[int], Any] = lambda rows: None,
) -> bool:
    """Explain this process's shards, split by split; whether everything was asked. Raises TeacherError."""
    for path, rows in _open_work(teacher, folder, records, splits, rank, ranks):
        table = _rows(rows)
        passages = _passages(table)
        found = teacher.explain(passages)
        table = pa.table(
            {
                DOCUMENT: table.column(DOCUMENT),
                TOKENS: table.column(TOKENS),
                EXPLANATION: pa.array([one.text for one in found], pa.string()),
                STATUS: pa.array([one.status for one in found], pa.string()),
            }
        ).replace_schema_metadata({BY: teacher.fingerprint().encode()})
        format.write_table(table, path)
        progress(len(found))
        if any(one.status == "unasked" for one in found):
            return False
    return True


def estimate(teacher: Teacher, folder: Folder, records: Sequence[Record], splits: Sequence[str]) -> Estimate:
    """What is still to be asked of all shards; nothing is sent."""
    total = [0, 0, 0, 0, 0.0]
    for _, rows in _open_work(teacher, folder, records, splits, 0, 1):
        one = teacher.estimate(_passages(_rows(rows)))
        parts = (one.rows, one.cached, one.input_tokens, one.output_tokens, one.usd)
        total = [so_far + part for so_far, part in zip(total, parts, strict=True)]
    return Estimate(*total)  # pyright: ignore[reportArgumentType]


def _open_work(
    teacher: Teacher, folder: Folder, records: Sequence[Record], splits: Sequence[str], rank: int, ranks: int
) -> Iterator[tuple[Path, Path]]:
    """Explanations file and activations file of every shard that is not explained yet."""
    for split in splits:
        for number, record in enumerate(records):
            for entry in record.of_layer(folder.layers[0]):
                path = folder.explanations(split, number)
                mine = entry["split"] == split and number % ranks == rank
                if mine and not _done(path, teacher, entry["rows"]):
                    yield path, folder.path / entry["path"]


def _done(path: Path, teacher: Teacher, rows: int) -> bool:
    if not path.is_file():
        return False
    try:
        with format.open_parquet(path) as file:
            by, count = (file.schema_arrow.metadata or {}).get(BY), file.metadata.num_rows
        if by != teacher.fingerprint().encode() or count != rows:
            return False
        groups = [format.read_group(path, group, [STATUS]) for group in range(len(format.group_sizes(path)))]
    except DataError as error:
        log.warning("explained again: %s", error)
        return False
    return not any("unasked" in table.column(STATUS).to_pylist() for table in groups)


def _rows(path: Path) -> pa.Table:
    columns = [DOCUMENT, TOKENS, TEXT]
    return pa.concat_tables([format.read_group(path, g, columns) for g in range(len(format.group_sizes(path)))])


def _passages(table: pa.Table) -> list[Passage]:
    documents, texts = table.column(DOCUMENT).to_pylist(), table.column(TEXT).to_pylist()
    return [Passage(document, text) for document, text in zip(documents, texts, strict=True)]
