"""Fault cases 13 to 20 and 45 to 47: damaged shards, bad metadata, leaks between splits, services that fail, no hub."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from support import ROOT
from support.loaders import shard_loader
from support.prepared import OPTIONS, manifest, run, source, stored_rows, tables, text, write_corpus
from support.services import GOOD, serving

from nla.commands.cli import main
from nla.data.corpora import HubCorpus
from nla.data.shards import format
from nla.data.shards.reader import agreement
from nla.data.shards.source import ShardSource
from nla.data.teachers import AnthropicTeacher, OpenAITeacher, Passage
from nla.errors import BudgetError, ConfigError, DataError, NLAError, TeacherError
from nla.models.target import Target

ROWS = 117  # of the corpus in warm_start and validation; some share their text, which is asked about once
KEY = "sk-secret-0123456789abcdefghijkl"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "texts.jsonl")


@pytest.fixture(scope="module")
def whole(corpus: Path, tiny_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tiny_folder, corpus, tmp_path_factory.mktemp("whole") / "p", "prepare.layers=[1]")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "p"))


def read_all(folder: Path, d_model: int) -> pa.Table:
    """What an epoch of the warm start reads."""
    rows = stored_rows(source(folder), "warm_start", d_model, False, shuffled=True)
    return rows.take(0, len(rows))


def damaged(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "flipped":
        middle = content.index(b"PAR1") + len(content) // 3
        content = content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"no parquet " * 50}.get(how, content))


@pytest.mark.parametrize("how", ["cut", "empty", "text", "flipped"])
def test_a_damaged_shard_is_named_and_prepared_again(
    whole: Path, folder: Path, corpus: Path, tiny_folder: str, target: Target, how: str
):
    """Cases 13 and 14: training refuses with the file's name, preparation makes that shard anew and no other."""
    victim = folder / "layer-01/warm_start-00001.parquet"
    others = {file: file.stat().st_mtime_ns for file in folder.glob("layer-01/*-0000[023].parquet")}
    damaged(victim, how)
    with pytest.raises(DataError, match=r"warm_start-00001\.parquet.*prepare it again"):
        read_all(folder, target.d_model)
    if how == "flipped":
        with pytest.raises(DataError, match=r"warm_start-00001\.parquet, row group 0: damaged"):
            format.read_group(victim, 0)
    run(tiny_folder, corpus, folder, "prepare.layers=[1]")
    assert tables(folder, 1)[victim.name].equals(tables(whole, 1)[victim.name])
    assert {file: file.stat().st_mtime_ns for file in others} == others


def foreign(folder: Path, values: Any, kind: pa.DataType | None = None, **meta: Any) -> Path:
    """A file as the released code writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = len(values)
    column = (
        values
        if isinstance(values, pa.Array)
        else format.activation_table(values, 1, np.ones(rows, np.int32), [""] * rows, [""] * rows).column(0)
    )
    if kind is not None:
        column = pa.array([[0.0] * 32] * rows, kind)
    table = pa.table(
        {
            format.VECTOR: column, format.TOKENS: pa.array([9] * rows, pa.int32()),
            format.LAYER: pa.array([meta.pop("row_layer", 1)] * rows, pa.int32()),
            format.DOCUMENT: [f"d{n}" for n in range(rows)], format.TEXT: [f"text {n}" for n in range(rows)],
            format.EXPLANATION: [f"about {n}" for n in range(rows)],
        }
    )  # fmt: skip
    pq.write_table(table, folder / "data.parquet", write_page_checksum=True)
    format.write_facts(folder / "data.parquet", format.Facts(**{"base_model": "m", "d_model": 32, "layer": 1} | meta))
    return folder


def vectors(rows: int = 2000) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, 32)).astype(np.float32)


def used(folder: Path) -> int:
    read = source(folder)
    return sum(len(stored_rows(read, s, 32, True)) for s in ("warm_start", "joint", "validation", "test"))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (pa.list_(pa.float32()), "column activation_vector is list<.*expected fixed_size_list<float>"),
        (pa.list_(pa.float64(), 32), "is fixed_size_list<.*double.*expected fixed_size_list<float>"),
    ],
)
def test_columns_of_another_type_are_refused(tmp_path: Path, kind: pa.DataType, message: str):
    """Case 15: lists of variable length corrupt in silence past 4 GiB, and float64 is no activation of ours."""
    with pytest.raises(DataError, match=message):
        source(foreign(tmp_path / "f", vectors(20), kind))


@pytest.mark.parametrize("how", ["nan", "inf", "zero", "far", "null"])
def test_bad_rows_are_dropped_and_counted_up_to_a_share(tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str):
    """Case 15: one of 2000 is left out and counted, three are too many."""
    for bad in (1, 3):
        values: Any = vectors()
        value = {"nan": np.nan, "inf": np.inf, "zero": 0.0, "far": 1e8, "null": 0.0}[how]
        values[:bad] = value
        if how == "null":
            flat = pa.array(values.reshape(-1))
            values = pa.FixedSizeListArray.from_arrays(flat, 32, mask=pa.array([n < bad for n in range(2000)]))
        folder = foreign(tmp_path / str(bad), values)
        if bad == 1:
            assert used(folder) == 1999
            assert "1 of 2000 rows are not activations and are left out" in caplog.text
        else:
            with pytest.raises(DataError, match="3 of 2000 rows are not activations .*at most 0.1%"):
                used(folder)


def test_activations_that_are_none_stop_a_preparation(
    corpus: Path, tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Case 15: a model in a type that overflows gives no shards."""
    original = Target.forward

    def overflowing(self: Target, *arguments: Any, **options: Any) -> Any:
        return original(self, *arguments, **options) * float("inf")

    monkeypatch.setattr(Target, "forward", overflowing)
    with pytest.raises(DataError, match=r"shard 0 of .*48 of 48 rows are not activations.*float32 or bfloat16"):
        run(tiny_folder, corpus, tmp_path / "p")
    assert not list((tmp_path / "p").glob("layer-*/*.parquet"))


GOOD_META = "kind: nla_dataset\nschema_version: 1\nextraction:\n  base_model: m\n  d_model: 32\n  layer_index: 1\n"


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (None, "has no data.parquet.nla_meta.yaml beside it"),
        (GOOD_META + "  d_model: 32\n", "'d_model' occurs twice"),
        (GOOD_META.replace("d_model: 32", "d_model: 8e4"), "extraction.d_model is '8e4', expected a whole number"),
        (GOOD_META.replace("d_model: 32", "d_model: no"), "extraction.d_model is False, expected a whole number"),
        (GOOD_META.replace("d_model: 32", "d_model: .nan"), "extraction.d_model is nan"),
        (GOOD_META.replace("d_model: 32", "d_model: -32"), "extraction.d_model is -32"),
        (GOOD_META.replace("base_model: m", "base_model: !!python/object/apply:os.system [touch x]"), "plain YAML"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n" + GOOD_META, "aliases are not allowed"),
        (GOOD_META.replace("nla_dataset", "nla_model"), "kind is 'nla_model'"),
        (GOOD_META + "  norm: unit\n", "extraction.norm is 'unit'"),
        (GOOD_META.replace("  layer_index: 1\n", ""), "extraction.layer_index is None"),
        ("x" * (2 << 20), "at most .* are read"),
        ("[1, 2]", "expected a mapping"),
    ],
)  # fmt: skip
def test_bad_metadata_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meta: str | None, message: str):
    """Case 16: no code runs, memory stays bounded, the message names file, key and rule."""
    monkeypatch.chdir(tmp_path)
    beside = foreign(tmp_path / "f", vectors(5)) / "data.parquet.nla_meta.yaml"
    beside.unlink()
    if meta is not None:
        beside.write_text(meta)
    with pytest.raises(NLAError, match=message) as found:
        source(tmp_path / "f")
    assert "data.parquet" in str(found.value) and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 16}, "activation_vector has width 32, .*nla_meta.yaml says 16"),
        ({"rows": 19}, "20 rows, .*nla_meta.yaml says 19"),
        ({"row_layer": 2}, "rows of layer 2, .*nla_meta.yaml says 1"),
    ],
)
def test_metadata_and_parquet_must_agree(tmp_path: Path, change: dict[str, int], message: str):
    """Case 17."""
    with pytest.raises(DataError, match=message):
        used(foreign(tmp_path / "f", vectors(20), None, **change))


def test_shards_of_another_model_or_layer_are_refused(folder: Path, target: Target, model_folders: dict[str, str]):
    """Case 17: by their facts, and by the numbers themselves where the facts lie."""
    read = source(folder)
    with pytest.raises(DataError, match="holds layer 1, not 2; prepare it, or set layer.index"):
        read.pieces("joint", 2, target.d_model, False)
    with pytest.raises(DataError, match="activations of width 32, the model has 64"):
        read.pieces("joint", 1, 64, False)
    found = agreement(shard_loader(read, target, split="joint", explanations=False).rows("joint"), target, read.path)
    assert len(found) == 8 and float(found.min()) > 0.999
    other = Target.from_pretrained(model_folders["llama"], layer=1)
    with pytest.raises(DataError, match="stored activations are not the target's .*another model, revision or layer"):
        agreement(shard_loader(read, other, split="joint", explanations=False).rows("joint"), other, read.path)


def test_a_document_on_two_sides_is_refused(folder: Path):
    """Case 18: a test document that training has seen."""
    entries = manifest(folder)["files"]
    joint = next(entry for entry in entries if entry["split"] == "joint")
    test = next(entry for entry in entries if entry["split"] == "test")
    shutil.copy(folder / joint["path"], folder / test["path"])
    shutil.copy(format.sidecar(folder / joint["path"]), format.sidecar(folder / test["path"]))
    test["rows"] = joint["rows"]
    content = {**manifest(folder), "files": [e if e["path"] != test["path"] else test for e in entries]}
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"document 'texts.jsonl:\d+' of split (joint|test) is in (joint|test) too"):
        source(folder)


def test_a_file_of_another_preparation_is_refused(folder: Path):
    """Case 19: files of two preparations in one folder."""
    victim = next((folder / "layer-01").glob("joint-*.parquet"))
    facts = format.read_facts(victim)
    format.write_facts(victim, format.Facts(facts.base_model, facts.d_model, 1, facts.rows, settings="other"))
    with pytest.raises(DataError, match="of preparation other.*files of two preparations are mixed"):
        source(folder)


@pytest.mark.parametrize("lost", ["sidecar", "record", "manifest"])
def test_what_a_kill_left_unfinished_is_made_again(
    whole: Path, folder: Path, corpus: Path, tiny_folder: str, lost: str
):
    """Case 19: only shards whose footer, metadata and settings agree are reused."""
    victim = folder / "layer-01/joint-00001.parquet"
    paths = {"sidecar": format.sidecar(victim), "record": folder / "records/00001.json"}
    paths["manifest"] = folder / "manifest.json"
    before = {file: file.stat().st_mtime_ns for file in (folder / "layer-01").glob("*.parquet")}
    paths[lost].unlink()
    (folder / "manifest.json").unlink(missing_ok=True)
    with pytest.raises(DataError, match="its preparation is not complete; the same nla prepare command completes it"):
        source(folder)
    run(tiny_folder, corpus, folder, "prepare.layers=[1]")
    again = {file.name for file in before if file.stat().st_mtime_ns != before[file]}
    assert again == (set() if lost == "manifest" else {n for n in (f.name for f in before) if "-00001" in n})
    assert all(table.equals(tables(whole, 1)[name]) for name, table in tables(folder, 1).items())


def test_other_settings_do_not_mix(folder: Path, corpus: Path, tiny_folder: str):
    """Case 19: a folder belongs to one setting; nothing in it is touched."""
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(ConfigError, match="was prepared with another seed .0, now 1.: choose prepare.out=<another>"):
        run(tiny_folder, corpus, folder, "prepare.layers=[1]", "seed=1")
    before.pop(folder / ".lock", None)
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_bad_documents_are_skipped_and_counted(tiny_folder: str, tmp_path: Path):
    """Case 20."""
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "rows.jsonl").write_text("".join(json.dumps({"text": text(n)}) + "\n" for n in range(30)))
    bad = {"empty": "", "white": " \n\t " * 40, "nul": "x\0y" * 20, "one": "x", "long": "word" * 250_000}
    for name, content in bad.items():
        (texts / f"{name}.txt").write_text(content)
    (texts / "binary.bin").write_bytes(b"\xff\xfe\x80" * 30)
    (texts / "more.jsonl").write_text(
        json.dumps({"text": "\ud800 " + text(1)})
        + "\n{cut\n"
        + json.dumps({"text": 3})
        + "\n"
        + json.dumps({"text": []})
    )
    out = run(tiny_folder, texts, tmp_path / "p", "prepare.max_characters=400", "prepare.max_tokens=64")
    found = manifest(out)
    assert found["skipped"] == {
        "empty": 1, "white space only": 1, "NUL character": 1, "too short": 1, "lone surrogate": 1, "not UTF-8": 1,
        "text is not a string": 1, "not a JSON object": 1, "not a chat of messages with role and content": 1,
        "cut at max_characters (kept)": 1,
    }  # fmt: skip
    assert sum(found["documents"].values()) == 31
    table = pa.concat_tables(tables(out, 2).values())
    assert max(table.column(format.TOKENS).to_pylist()) <= 64


# Services


def asked(kind: Any, url: str, folder: Path, **changes: Any) -> Any:
    options: dict[str, Any] = {
        "base_url": url, "price": {"input": 10.0, "output": 50.0}, "concurrency": 1, "retries": 3, "timeout": 1.0,
        "api_key": KEY, "max_tokens": 100, "temperature": 1.0, "max_unusable": 1.0,
    }  # fmt: skip
    made = kind("m", **{**options, **changes})
    made.open(folder)
    made._stop.wait = lambda seconds: None  # nobody waits in a test
    return made


PASSAGE = [Passage("d", "A passage about the")]


@pytest.mark.parametrize("kind", [AnthropicTeacher, OpenAITeacher])
@pytest.mark.parametrize("status", [429, 500, 503, 529])
def test_passing_troubles_are_tried_again_and_cost_nothing(kind: Any, status: int, tmp_path: Path):
    """Case 45."""
    with serving() as (service, url):
        service.script = [{"status": status, "body": "busy"}] * 2
        teacher = asked(kind, url, tmp_path)
        assert teacher.explain(PASSAGE)[0].status == "ok" and len(service.seen) == 3
        assert teacher.ledger.spent()[1] == 150
        service.script = [{"status": status, "body": "busy"}] * 9
        with pytest.raises(TeacherError, match=f"HTTP {status}: busy, tried 4 times; the same command continues later"):
            teacher.explain([Passage("e", "another")])
        assert teacher.ledger.spent()[1] == 150


def test_an_answer_that_never_comes_counts_as_paid(tmp_path: Path):
    """Case 45: a timeout is tried again, and the budget counts the first try at the most that it can have cost."""
    with serving() as (service, url):
        service.script = [{"sleep": 0.6}]
        teacher = asked(OpenAITeacher, url, tmp_path, timeout=0.2)
        assert teacher.explain(PASSAGE)[0].status == "ok" and len(service.seen) == 2
        usd, tokens = teacher.ledger.spent()
    assert tokens > 150 + 100 and usd > 2 * (50 * 50) / 1e6


@pytest.mark.parametrize("kind", [AnthropicTeacher, OpenAITeacher])
@pytest.mark.parametrize(
    ("stop", "said", "body", "status"),
    [
        ("refused", "", None, "refused"),
        ("end", "", None, "empty"),
        ("cut", GOOD[:80], None, "cut"),
        ("end", GOOD[:80], None, "malformed"),
        ("end", GOOD, '{"choices": [{"mess', "unreadable"),
        ("end", GOOD, '{"error": "none"}', "unreadable"),
    ],
)
def test_replies_without_an_explanation_mark_the_row(
    kind: Any, stop: str, said: str, body: str | None, status: str, tmp_path: Path
):
    """Case 45: refusal, empty, cut: the row is marked, and a restart does not pay for it again."""
    with serving(lambda prompt: said) as (service, url):
        service.stop = stop
        service.script = [{"body": body}] if body else []
        found = asked(kind, url, tmp_path).explain(PASSAGE)
        assert (found[0].status, found[0].text) == (status, None)
        assert asked(kind, url, tmp_path).explain(PASSAGE)[0].status == status and len(service.seen) == 1


def test_a_passage_that_the_service_will_not_take_marks_the_row(tmp_path: Path):
    """Case 45."""
    with serving() as (service, url):
        service.script = [{"status": 400, "body": '{"error": "prompt too long"}'}]
        teacher = asked(OpenAITeacher, url, tmp_path)
        assert [one.status for one in teacher.explain([*PASSAGE, Passage("e", "other")])] == ["rejected", "ok"]
        assert teacher.ledger.spent()[1] == 150


@pytest.mark.parametrize("status", [401, 403, 404, 307])
def test_a_wrong_key_or_address_stops_at_once(status: int, tmp_path: Path):
    """Cases 45 and 41: no second try, no key in the message; a redirect does not carry the key elsewhere."""
    with serving() as (service, url):
        headers = {"location": f"{url}/elsewhere"} if status == 307 else {}
        service.script = [{"status": status, "body": f"wrong key {KEY}", "headers": headers}] * 9
        with pytest.raises(TeacherError, match=f"HTTP {status}") as found:
            asked(AnthropicTeacher, url, tmp_path).explain([Passage(str(n), f"text {n}") for n in range(5)])
        assert len(service.seen) == 1 and KEY not in str(found.value)
    assert all(KEY.encode() not in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def command(folder: Path, model: str, corpus: Path, url: str, *overrides: str) -> list[str]:
    return [
        "prepare", "experiment=text", f"model.path={model}", "corpus=files", f"corpus.path={corpus}", *OPTIONS,
        f"prepare.out={folder}", "layer.index=1", "teacher=anthropic", "teacher.model=m", f"teacher.base_url={url}",
        "teacher.price.input=10", "teacher.price.output=50", f"teacher.api_key={KEY}", "teacher.concurrency=2",
        *overrides,
    ]  # fmt: skip


def explained(folder: Path) -> dict[str, int]:
    return manifest(folder)["explanations"]


def test_a_spent_budget_ends_cleanly_and_more_goes_on(
    corpus: Path, tiny_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: Target
):
    """Case 46: what is paid for can be trained on; with more money only the rest is asked. No secret on disk (41)."""
    out = tmp_path / "p"
    with serving() as (service, url):
        assert main(command(out, tiny_folder, corpus, url, "teacher.usd=0.15")) == 2
        shown = capsys.readouterr()
        assert "budget is spent" in shown.err and "continues" in shown.err and "passages to explain" in shown.out
        first, partial = len(service.seen), explained(out)
        assert 0 < first < ROWS and first * 0.0035 <= 0.15 and partial["ok"] >= first and partial["unasked"] > 0
        assert len(stored_rows(source(out), "warm_start", target.d_model, True)) == partial["ok"]
        assert main(command(out, tiny_folder, corpus, url, "teacher.usd=9")) == 0
        assert "unasked" not in explained(out)
        assert len(service.seen) == len(set(service.prompts)) and explained(out) == {"ok": ROWS}
    assert all(KEY.encode() not in file.read_bytes() for file in out.rglob("*") if file.is_file())
    assert KEY not in shown.out + shown.err


@pytest.mark.slow
def test_a_killed_preparation_never_pays_twice(corpus: Path, tiny_folder: str, tmp_path: Path):
    """Case 45: killed while explaining; only what was on its way is asked again, and the budget still counts it."""
    out = tmp_path / "p"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with serving() as (service, url):
        service.pause = 0.05
        line = [sys.executable, "-m", "nla.commands.cli", *command(out, tiny_folder, corpus, url)]
        process = subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        until(lambda: len(service.seen) >= 10 or process.poll() is not None)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        until(lambda: service.together == 0)
        service.pause = 0.0
        assert main(command(out, tiny_folder, corpus, url)) == 0
        asked_for = len(service.seen) - len(set(service.prompts))
    assert 0 <= asked_for <= 2  # as many as were on their way
    assert explained(out) == {"ok": ROWS}


def until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not met() and time.monotonic() < deadline:
        time.sleep(0.02)


def test_a_budget_is_never_exceeded(tmp_path: Path):
    """Case 46: requests at the same time share one budget."""
    with serving() as (service, url):
        service.pause = 0.02
        teacher = asked(AnthropicTeacher, url, tmp_path, usd=0.05, concurrency=4)
        found = teacher.explain([Passage(str(n), f"text {n}") for n in range(40)])
        assert teacher.ledger.spent()[0] <= 0.05 and {one.status for one in found} == {"ok", "unasked"}
        with pytest.raises(BudgetError, match="of teacher.usd=0.05 are spent; raise it to continue"):
            teacher.ledger.enter("another", 10, 0.05)


# The hub


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"status": 401, "headers": {"x-error-code": "GatedRepo"}}, "it is gated: accept its terms"),
        ({"status": 404, "headers": {"x-error-code": "RevisionNotFound"}}, "it has no revision 'v9'"),
        ({"status": 404, "headers": {"x-error-code": "RepoNotFound"}}, "the hub has no such repository"),
    ],
)
def test_a_data_set_that_cannot_be_read_comes_with_the_remedy(
    answer: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch, hub: Any
):
    """Case 47, for data."""
    service, url = hub
    service.script = [{**answer, "body": "{}"}] * 3
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    with pytest.raises(DataError, match=f"corpus.dataset=org/name: cannot be read .*{message}.*corpus=files"):
        HubCorpus("org/name", revision="v9").version()


def test_offline_the_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    """Case 47."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="offline mode is on"):
        HubCorpus("org/name").version()


def test_the_commit_of_a_data_set_is_its_version(monkeypatch: pytest.MonkeyPatch, hub: Any):
    """Case 47: a branch moves, a commit does not."""
    service, url = hub
    service.script = [{"body": json.dumps({"id": "org/name", "sha": "c0ffee", "tags": [], "private": False})}]
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    corpus = HubCorpus("org/name")
    assert corpus.version() == "c0ffee" == corpus.version() and len(service.seen) == 1


@pytest.fixture
def hub() -> Any:
    with serving() as (service, url):
        yield service, url


def test_a_manifest_that_leads_outside_is_refused(folder: Path):
    """Case 42, for shards."""
    content = manifest(folder)
    content["files"][0]["path"] = "../elsewhere.parquet"
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="names '../elsewhere.parquet', which is outside its folder"):
        ShardSource(str(folder), {"joint": 1.0}, "k", 64)


def test_the_settings_on_disk_read_back(folder: Path):
    assert yaml.safe_load((folder / "prepare.yaml").read_text())["made_by"]["layers"] == [1]
