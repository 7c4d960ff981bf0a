"""The prepared folder: which shards in it are whole, and the manifest that says so to training.

prepare.yaml                the settings, without secrets
records/00000.json          what shard 0 consists of; written when all its files are there
layer-20/<split>-00000.parquet, explanations/<split>-00000.parquet
manifest.json               the sum; written last
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nla import files
from nla.data.shards import format
from nla.data.shards.source import MANIFEST, SCHEMA
from nla.errors import DataError, NLAError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """One shard: a run of the corpus's rows.

    Args:
        settings: hash of what it was made by.
        read: rows of the corpus that it covers.
        documents: those that positions were read in, by split.
        skipped: the others, by reason.
        dropped: positions whose activations were none.
        files: `path`, `split`, `layer` and `rows` of each file.
    """

    settings: str
    read: int
    documents: dict[str, int]
    skipped: dict[str, int]
    dropped: int
    files: list[dict[str, Any]] = field(default_factory=list)

    def of_layer(self, layer: int) -> Iterator[dict[str, Any]]:
        return (file for file in self.files if file["layer"] == layer)


class Folder:
    """`settings` is the hash that every file of the folder must carry."""

    def __init__(self, path: Path, settings: str, layers: list[int]) -> None:
        self.path, self.settings, self.layers = path, settings, layers

    def activations(self, layer: int, split: str, number: int) -> str:
        return f"layer-{layer:02d}/{split}-{number:05d}.parquet"

    def explanations(self, split: str, number: int) -> Path:
        return self.path / "explanations" / f"{split}-{number:05d}.parquet"

    def write_record(self, number: int, record: Record) -> None:
        self._record(number).parent.mkdir(parents=True, exist_ok=True)
        files.write_text(self._record(number), json.dumps(asdict(record), indent=1) + "\n")

    def record(self, number: int) -> Record | None:
        """None where the shard is not there, or another preparation's."""
        try:
            found = Record(**json.loads(self._record(number).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return found if found.settings == self.settings else None

    def whole(self, number: int, read: int) -> bool:
        """Whether a shard can be kept: record, metadata, footers and every page's checksum agree."""
        record = self.record(number)
        if record is None or record.read != read:
            return False
        try:
            for entry in record.files:
                path = self.path / entry["path"]
                facts = format.check_file(path)
                if facts.settings != self.settings or facts.rows != entry["rows"]:
                    raise DataError(f"{path}: is not what its record says")
                for group in range(len(format.group_sizes(path))):
                    format.read_group(path, group)
        except NLAError as error:
            log.warning("shard %d is prepared again: %s", number, error)
            return False
        return True

    def records(self, count: int) -> list[Record]:
        """Of all shards. Raises DataError where one is missing."""
        found = [self.record(number) for number in range(count)]
        for number, record in enumerate(found):
            if record is None:
                raise DataError(f"{self._record(number)} is missing: a process has not ended its part; run it again")
        return [record for record in found if record is not None]

    def write_manifest(self, records: list[Record], skipped: Counter[str], facts: dict[str, Any]) -> dict[str, Any]:
        """The sum of all shards, with `facts` about model, corpus and teacher."""
        documents, reasons = Counter[str](), Counter(skipped)
        entries, explained = [], Counter[str]()
        for number, record in enumerate(records):
            documents.update(record.documents)
            reasons.update(record.skipped)
            for entry in record.files:
                texts = self.explanations(entry["split"], number)
                there = texts.is_file()
                entries.append({**entry, "explanations": texts.relative_to(self.path).as_posix() if there else None})
                if there and entry["layer"] == self.layers[0]:
                    for group in range(len(format.group_sizes(texts))):
                        column = format.read_group(texts, group, [format.STATUS]).column(format.STATUS)
                        explained.update(column.to_pylist())
        rows = Counter[str]()
        for entry in entries:
            if entry["layer"] == self.layers[0]:
                rows[entry["split"]] += entry["rows"]
        manifest = {
            "schema": SCHEMA,
            "settings": self.settings,
            **facts,
            "layers": self.layers,
            "documents": dict(documents),
            "rows": dict(rows),
            "explanations": dict(explained),
            "skipped": dict(reasons),
            "dropped": sum(record.dropped for record in records),
            "files": entries,
        }
        files.write_text(self.path / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        return manifest

    def _record(self, number: int) -> Path:
        return self.path / "records" / f"{number:05d}.json"
