"""Streamed sources: the rows that `nla prepare` reads, one after the other, and how each becomes a document.

They may be larger than memory; no row is kept. Chats become text through the model's chat template.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from nla.data.files import Columns, corpus_files, corpus_path, fault, named_rows, read_files
from nla.data.source import SPLITS, Document, Row, Source, StreamedSource
from nla.errors import DataError
from nla.models.pretrained.hub import remedy


class FileCorpus:
    """Texts or chats in a folder of UTF-8 files, Parquet or JSONL, or in one such file.

    Args:
        path: a folder (every file in it), or one file.
        text_column: of Parquet and JSONL rows: a text, or a list of messages with `role` and `content`.
        id_column: rows of one document share its value; None: each row is a document.
    """

    def __init__(self, path: str, text_column: str = "text", id_column: str | None = None) -> None:
        self.path, self.columns = corpus_path(path, "corpus.path"), Columns(text_column, id=id_column)
        self.name = Path(path).name
        self.skipped: Counter[str] = Counter()

    def rows(self) -> Iterator[Row]:
        return read_files(self.path, self.columns, self.skipped)

    def version(self) -> str:
        return files_version(self.path)


class HubCorpus:
    """A data set of the Hugging Face Hub, read by streaming: nothing is downloaded ahead. Needs the extra `datasets`.

    Args:
        dataset: hub id, or a folder with data files.
        config: the data set's own configuration, where it has several.
        split: the data set's own split.
        revision: branch, tag or commit; it is resolved once and the commit recorded.
        text_column, id_column: as for files.
    """

    def __init__(
        self,
        dataset: str,
        config: str | None = None,
        split: str = "train",
        revision: str | None = None,
        text_column: str = "text",
        id_column: str | None = None,
    ) -> None:
        self.dataset, self.config, self.split, self.revision = dataset, config, split, revision
        self.columns = Columns(text_column, id=id_column)
        self.local = Path(dataset).is_dir()
        self.name = Path(dataset).name if self.local else dataset
        self.skipped: Counter[str] = Counter()
        self._commit: str | None = None

    def version(self) -> str:
        """The commit. Raises DataError with the remedy where the hub or the data set cannot be reached."""
        if self.local:
            return files_version(Path(self.dataset))
        if self._commit is None:
            from huggingface_hub import HfApi

            try:
                self._commit = str(HfApi().dataset_info(self.dataset, revision=self.revision).sha)
            except Exception as error:  # offline, gated, unknown id or revision: many classes
                raise self._unreachable(error) from error
        return self._commit

    def rows(self) -> Iterator[Row]:
        try:
            from datasets import load_dataset
        except ModuleNotFoundError as error:
            raise DataError('corpus=hub needs the package datasets: pip install "nla[datasets]"') from error
        revision = None if self.local else self.version()
        try:
            stream: Any = load_dataset(self.dataset, self.config, split=self.split, revision=revision, streaming=True)
            yield from named_rows(
                f"{self.name}/{self.split}", stream, self.columns, where=f"corpus.dataset={self.dataset}"
            )
        except DataError:
            raise
        except Exception as error:  # of the network, of the files, of a wrong split
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> DataError:
        return DataError(
            f"corpus.dataset={self.dataset}: cannot be read ({remedy(error, self.dataset, self.revision)}); the same "
            "command continues where it stopped, and corpus=files reads a downloaded copy"
        )


class Documents:
    """The documents of a source in memory as a stream, in that source's own splits."""

    def __init__(self, source: Source) -> None:
        self.source, self.name = source, type(source).__name__
        self.skipped: Counter[str] = Counter(getattr(source, "skipped", ()))

    def rows(self) -> Iterator[Row]:
        for split in SPLITS[1:]:
            for document in self.source.documents(split):
                yield Row(document.id, document.text, document.root, document.explanation, split)

    def version(self) -> str:
        path = getattr(self.source, "path", None)
        return self.name if path is None else files_version(Path(path))


def streamed(source: Source | StreamedSource) -> StreamedSource:
    """Any source, row by row."""
    return source if isinstance(source, StreamedSource) else Documents(source)


def files_version(path: Path) -> str:
    """Changes with the name, size or time of any file below `path`."""
    whole = hashlib.blake2b(digest_size=16)
    for file in corpus_files(path):
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        whole.update(f"{name}\0{file.stat().st_size}\0{file.stat().st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def to_document(
    row: Row, tokenizer: PreTrainedTokenizerBase, min_characters: int, max_characters: int
) -> tuple[Document | None, str | None]:
    """The document, and what was done to it or why there is none.

    A text longer than `max_characters` is cut there, which bounds what is tokenized. Raises DataError for a chat where
    the tokenizer has no template.
    """
    content = row.content
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        text, reason = _chat_text(content, tokenizer)
    elif isinstance(content, str):
        text, reason = content, None
    else:
        text, reason = "", "text is not a string"
    reason = reason or fault(text, min_characters)
    if reason is not None:
        return None, reason
    cut = "cut at max_characters (kept)" if len(text) > max_characters else None
    return Document(row.id, text[:max_characters], row.origin, row.explanation), cut


def _chat_text(messages: Sequence[Any], tokenizer: PreTrainedTokenizerBase) -> tuple[str, str | None]:
    """What the model reads of a chat; tokenizing it gives the ids of `apply_chat_template(tokenize=True)`."""
    if not tokenizer.chat_template:
        raise DataError(
            f"the corpus holds chats and tokenizer {type(tokenizer).__name__} has no chat template: use an instruct "
            "model, or give texts"
        )
    known = all(
        isinstance(m, Mapping) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in messages
    )
    if not messages or not known:
        return "", "not a chat of messages with role and content"
    given = [{"role": m["role"], "content": m["content"]} for m in messages]
    try:
        text = str(tokenizer.apply_chat_template(given, tokenize=False))
    except Exception:  # jinja2 raises what the template likes: roles that do not alternate, no system message
        return "", "refused by the chat template"
    begin: Any = tokenizer.bos_token
    added = isinstance(begin, str) and tokenizer.bos_token_id in tokenizer("a")["input_ids"][:1]  # pyright: ignore
    return text.removeprefix(begin) if added else text, None
