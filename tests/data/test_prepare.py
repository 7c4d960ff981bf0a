"""From a corpus to shards and back: exact activations, exact rows, resume, processes, the released form, training."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from support import ROOT
from support import prepared as preparing
from support.loaders import record, shard_loader, take
from support.models import MARKER, TEMPLATES
from support.prepared import all_rows, manifest, run, source, stored_rows, text, write_corpus
from support.services import GOOD, serving
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from nla.commands.cli import main
from nla.config.check import check_evaluate, check_train
from nla.config.compose import compose
from nla.data.corpora import FileCorpus, HubCorpus, streamed, to_document
from nla.data.datamodule import NLADataModule
from nla.data.prepare import activations, write_released
from nla.data.shards import format
from nla.data.shards.reader import _evenly
from nla.data.shards.source import ShardSource
from nla.data.source import Document, Row
from nla.data.text import TextSource
from nla.evaluation import program as evaluating
from nla.models.pair import NLA
from nla.models.prompts import build_verbalizer_prompt, chat_ids, token_ids
from nla.models.target import Target
from nla.training import program as app


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "texts.jsonl")


@pytest.fixture(scope="module")
def prepared(corpus: Path, tiny_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers 1 and 2 of 60 documents, all explained by a service."""
    out = tmp_path_factory.mktemp("prepared") / "p"
    with serving(lambda prompt: GOOD.replace("calm", f"calm ({len(prompt)})")) as (_, url):
        teacher = ["teacher=server", "teacher.model=m", f"teacher.base_url={url}"]
        run(tiny_folder, corpus, out, "prepare.layers=[1,2]", *teacher, "prepare.explain=[warm_start,validation]")
    return out


def rows_of(folder: Path, layer: int = 1) -> list[tuple]:
    table = all_rows(folder, layer)
    return sorted(zip(*(table.column(name).to_pylist() for name in ("doc_id", "n_raw_tokens", format.TEXT))))


def test_shards_hold_what_the_target_reads(prepared: Path, tiny_folder: str):
    for layer in (1, 2):
        target = Target.from_pretrained(tiny_folder, layer)
        table = all_rows(prepared, layer)
        assert table.schema.field(format.VECTOR).type == pa.list_(pa.float32(), target.d_model)
        assert set(table.column(format.LAYER).to_pylist()) == {layer}
        texts, counts = table.column(format.TEXT).to_pylist(), table.column(format.TOKENS).to_pylist()
        same = [i for i, ids in enumerate(token_ids(target.tokenizer, texts)) if len(ids) == counts[i]]
        assert len(same) > 0.7 * len(texts)
        read = target.read([texts[i] for i in same])
        stored = torch.from_numpy(format.vectors(table)[same].copy())
        torch.testing.assert_close(stored, read.activation, atol=1e-4, rtol=1e-4)
        facts = format.read_facts(next((prepared / f"layer-{layer:02d}").glob("*.parquet")))
        assert (facts.layer, facts.d_model, facts.corpus) == (layer, target.d_model, "texts.jsonl")
    assert str(Path(tiny_folder).parent) not in (prepared / "manifest.json").read_text()


def test_splits_go_by_document_and_texts_are_whole(prepared: Path):
    content = manifest(prepared)
    assert sum(content["documents"].values()) == 60 and sum(content["rows"].values()) == 180
    sides: dict[str, set[str]] = {}
    for entry in content["files"]:
        table = pq.read_table(prepared / entry["path"])
        assert table.num_rows == entry["rows"]
        for name, context in zip(table.column("doc_id").to_pylist(), table.column(format.TEXT).to_pylist()):
            sides.setdefault(name, set()).add(entry["split"])
            assert text(int(name.rpartition(":")[2])).startswith(context)
    assert len(sides) == 60 and all(len(splits) == 1 for splits in sides.values())
    assert content["explanations"] == {"ok": content["rows"]["warm_start"] + content["rows"]["validation"]}


def test_shards_of_another_size_hold_the_same_rows(prepared: Path, corpus: Path, tiny_folder: str, tmp_path: Path):
    run(tiny_folder, corpus, tmp_path / "p", "prepare.documents_per_shard=7", "prepare.layers=[1]")
    assert rows_of(tmp_path / "p") == rows_of(prepared)


def test_copies_of_a_text_stay_on_one_side(tiny_folder: str, tmp_path: Path):
    lines = [json.dumps({"text": text(number % 20), "work": f"w{number % 3}"}) + "\n" for number in range(40)]
    (tmp_path / "c.jsonl").write_text("".join(lines))
    for name, override in (("text", "corpus.id_column=null"), ("work", "corpus.id_column=work")):
        out = run(tiny_folder, tmp_path / "c.jsonl", tmp_path / name, override, "prepare.layers=[1]")
        sides: dict[str, set[str]] = {}
        for file, table in preparing.tables(out, 1).items():
            keys = table.column(format.DOCUMENT).to_pylist()
            for key in keys:
                group = str(int(key.rpartition(":")[2]) % 20) if name == "text" else key
                sides.setdefault(group, set()).add(file.split("-")[0])
        assert all(len(splits) == 1 for splits in sides.values())


def test_an_interrupted_preparation_continues(
    prepared: Path, corpus: Path, tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It dies in its third shard: the first two are kept untouched, and the result is the same."""
    write = activations._write_shard

    def dying(number: int, *rest: Any) -> None:
        if number == 2:
            raise KeyboardInterrupt
        write(number, *rest)

    monkeypatch.setattr(activations, "_write_shard", dying)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_folder, corpus, tmp_path / "p", "prepare.layers=[1]")
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "p/layer-01").iterdir()}
    assert kept and not (tmp_path / "p/manifest.json").exists()
    monkeypatch.setattr(activations, "_write_shard", write)
    run(tiny_folder, corpus, tmp_path / "p", "prepare.layers=[1]")
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    for name, table in preparing.tables(prepared, 1).items():
        assert table.equals(preparing.tables(tmp_path / "p", 1)[name])


def test_more_of_the_corpus_may_be_read_later(corpus: Path, tiny_folder: str, tmp_path: Path, prepared: Path):
    out = run(tiny_folder, corpus, tmp_path / "p", "prepare.layers=[1]", "prepare.max_documents=20")
    assert sum(manifest(out)["documents"].values()) == 20
    first = out / "records/00000.json"
    before = first.stat().st_mtime_ns
    run(tiny_folder, corpus, out, "prepare.layers=[1]")
    assert rows_of(out) == rows_of(prepared) and first.stat().st_mtime_ns == before


@pytest.mark.slow
def test_two_processes_prepare_what_one_does_and_continue_where_one_was_killed(
    prepared: Path, corpus: Path, tiny_folder: str, tmp_path: Path
):
    """First torchrun, whose second process is killed; then Lightning's own launcher. No shard is read twice."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    given = ["prepare", "experiment=text", f"model.path={tiny_folder}", "corpus=files", f"corpus.path={corpus}"]
    given += [*preparing.OPTIONS, f"prepare.out={tmp_path / 'p'}", "prepare.layers=[1,2]", "hardware=cpu_x2"]
    worker, diary = str(ROOT / "tests/support/prepare_worker.py"), tmp_path / "diary"
    diary.touch()
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    first, second = ([*torchrun, worker, str(diary), "3", *given], [worker, str(diary), "-", *given])
    wanted: dict[str, Any] = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "timeout": 300}
    assert subprocess.run([sys.executable, *first], **wanted).returncode != 0
    assert sorted(diary.read_text().splitlines()) == ["0 0", "0 2", "1 1"]
    assert not (tmp_path / "p/manifest.json").exists()
    done = subprocess.run([sys.executable, *second], **wanted)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert sorted(diary.read_text().splitlines()) == ["0 0", "0 2", "1 1", "1 3"]
    for layer in (1, 2):
        for name, table in preparing.tables(prepared, layer).items():
            assert table.equals(preparing.tables(tmp_path / "p", layer)[name])
    assert manifest(tmp_path / "p")["files"] == [{**f, "explanations": None} for f in manifest(prepared)["files"]]


def test_corpora_of_every_kind_give_the_same_rows(corpus: Path, tmp_path: Path):
    texts = [text(number) for number in range(60)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "texts.parquet")
    (tmp_path / "folder").mkdir()
    for number, one in enumerate(texts):
        (tmp_path / "folder" / f"{number:02d}.txt").write_text(one)
    (tmp_path / "hub").mkdir()
    pq.write_table(pa.table({"text": texts}), tmp_path / "hub" / "train-00000.parquet")
    corpora = [FileCorpus(str(p)) for p in (corpus, tmp_path / "texts.parquet", tmp_path / "folder")]
    for one in [*corpora, HubCorpus(str(tmp_path / "hub"))]:
        rows = list(one.rows())
        assert [row.content for row in rows] == texts and len({row.id for row in rows}) == 60
        assert one.version() == one.version()
    before = corpora[2].version()
    (tmp_path / "folder/another.txt").write_text("more")
    assert corpora[2].version() != before


def test_a_source_keeps_its_own_splits():
    class Given:
        def documents(self, split: str) -> list[Document]:
            return [Document("a", "some text")] if split == "joint" else []

        def explanation(self, document: Document, end: int, seed: int) -> None:
            return None

    assert [(row.id, row.split) for row in streamed(Given()).rows()] == [("a", "joint")]


def test_a_source_in_memory_is_another_version_after_its_files_change(tmp_path: Path):
    given = {"text_column": "text", "explanation_column": None, "id_column": None, "min_characters": 10,
             "max_characters": 1500, "max_chunks": None, "max_documents": None}  # fmt: skip
    path = write_corpus(tmp_path / "texts.jsonl")
    before = streamed(TextSource(str(path), preparing.FRACTIONS, "nla", **given)).version()
    assert before == streamed(TextSource(str(path), preparing.FRACTIONS, "nla", **given)).version()
    write_corpus(path, 61)
    assert before != streamed(TextSource(str(path), preparing.FRACTIONS, "nla", **given)).version()


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_a_chat_is_read_as_the_model_reads_it(model_folders: dict[str, str], family: str):
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model_folders[family])
    if family == "gemma3":  # its template writes the BOS that its tokenizer also adds
        tokenizer.chat_template = "{{ bos_token }}" + str(tokenizer.chat_template)
    messages = [{"role": "user", "content": "Who walks to the harbour?"}, {"role": "assistant", "content": "Tom."}]
    document, note = to_document(Row("c", messages), tokenizer, 1, 1000)
    assert document is not None and note is None
    expected: Any = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert token_ids(tokenizer, [document.text])[0] == list(expected)
    assert chat_ids(tokenizer, "Who walks to the harbour?")[:5] == list(expected)[:5]


def loader(folder: Path, target: Target, **changes: Any) -> NLADataModule:
    return shard_loader(source(folder, changes.pop("shuffle_rows", 20)), target, **changes)


def test_an_epoch_holds_every_row_once_in_a_new_order(prepared: Path, target: Target):
    data = loader(prepared, target)
    rows = len(data.rows("warm_start"))
    assert rows == manifest(prepared)["rows"]["warm_start"]
    keys = [(d, p) for b in take(data, -(-2 * rows // 8)) for d, p in zip(b.document, b.position.tolist())]
    assert len(set(keys[:rows])) == rows and set(keys[:rows]) == set(keys[rows : 2 * rows])
    assert keys[:rows] != keys[rows : 2 * rows]


def test_rows_keep_their_own_vector_and_explanation(prepared: Path, target: Target):
    stored = {}
    table = all_rows(prepared, 1)
    for row, (name, count) in enumerate(
        zip(table.column("doc_id").to_pylist(), table.column(format.TOKENS).to_pylist())
    ):
        stored[name, count] = format.vectors(table)[row]
    for batch in take(loader(prepared, target), 6):
        assert batch.explanation is not None
        for row in range(len(batch)):
            key = batch.document[row], int(batch.position[row]) + 1
            assert np.array_equal(stored[key], batch.activation[row].numpy())
            assert text(int(key[0].rpartition(":")[2])).startswith(batch.text[row])
        # the teacher put the length of its question into the text
        lengths = [int(one.partition("calm (")[2].partition(")")[0]) for one in batch.explanation]
        assert len({length - len(context) for length, context in zip(lengths, batch.text)}) == 1


def test_ranks_and_workers_share_the_batches_of_one_process(prepared: Path, target: Target):
    whole = take(loader(prepared, target), 5)
    parts = []
    for rank in (0, 1):
        data = loader(prepared, target)
        progress = SimpleNamespace(total=SimpleNamespace(processed=0))
        loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank, fit_loop=loop)  # pyright: ignore
        parts.append(take(data, 5))
    for step, batch in enumerate(whole):
        assert batch.text == parts[0][step].text + parts[1][step].text
    many = take(loader(prepared, target, num_workers=2), 5)
    assert [batch.text for batch in many] == [batch.text for batch in whole]


def test_validation_reads_every_row_once_on_any_number_of_ranks(prepared: Path, target: Target):
    whole = [batch.text for batch in loader(prepared, target).val_dataloader()]
    assert sum(map(len, whole)) == manifest(prepared)["rows"]["validation"]
    parts, padding = [], 0
    for rank in range(3):
        data = loader(prepared, target)
        data.trainer = SimpleNamespace(world_size=3, global_rank=rank)  # pyright: ignore
        batches = list(data.val_dataloader())
        assert len(batches) == 1  # the same number on each rank
        padding += sum(batch.padding for batch in batches)
        parts += [text for batch in batches if not batch.padding for text in batch.text]
    assert sorted(parts) == sorted(text for texts in whole for text in texts) and padding == 2
    few = loader(prepared, target, validation_documents=3)
    assert len({name for batch in few.val_dataloader() for name in batch.document}) == 3


def test_a_long_document_gives_validation_a_few_rows_evenly_spaced(
    prepared: Path, target: Target, monkeypatch: pytest.MonkeyPatch
):
    """Chunks of one document share its id: without a bound, a few documents would be the whole split."""
    every = [text for batch in loader(prepared, target, validation_documents=3).val_dataloader() for text in batch.text]
    monkeypatch.setattr("nla.data.shards.reader.MOST_ROWS", 2)
    few = list(loader(prepared, target, validation_documents=3).val_dataloader())
    counts = Counter(name for batch in few for name in batch.document)
    assert set(counts.values()) == {2} and {text for batch in few for text in batch.text} < set(every)
    assert [_evenly(index, 5) for index in range(5)] == [False, False, True, False, True]


def test_one_block_is_held_at_a_time(prepared: Path, target: Target, monkeypatch: pytest.MonkeyPatch):
    from nla.data.shards import shard_rows as shardrows

    read: Counter[str] = Counter()
    original = shardrows.read_piece

    def counting(piece: Any) -> pa.Table:
        read[str(piece.path)] += 1
        return original(piece)

    monkeypatch.setattr(shardrows, "read_piece", counting)
    rows = stored_rows(source(prepared, 20), "warm_start", target.d_model, True, shuffled=True)
    for place in range(len(rows)):
        rows.take(place, 1)
        assert rows._held is not None and len(rows._held[1]) < 20 + max(rows.sizes)
    assert set(read.values()) == {1}  # each group once in an epoch


def test_a_resumed_run_continues_with_the_next_row(prepared: Path, target: Target, tmp_path: Path):
    straight = record(loader(prepared, target), tmp_path / "straight", 12)
    first = record(loader(prepared, target), tmp_path / "parts", 12, fail_at=5)
    second = record(loader(prepared, target), tmp_path / "parts", 12)
    assert len(straight) == 12 and first == straight[:5] and second == straight[4:]


def test_the_released_form_is_written_and_read_unchanged(prepared: Path, target: Target, tmp_path: Path):
    files = write_released(source(prepared), tmp_path / "r", target.tokenizer, TEMPLATES, MARKER)
    assert {file.name for file in files} >= {"warm_start-layer-01.parquet", "joint-layer-02.parquet"}
    table = pq.read_table(tmp_path / "r/warm_start-layer-01.parquet")
    columns = {
        "activation_vector", "n_raw_tokens", "activation_layer", "doc_id", "detokenized_text_truncated", "prompt",
    }  # fmt: skip
    assert set(table.column_names) == columns | {"api_explanation", "response"}
    assert set(pq.read_schema(tmp_path / "r/joint-layer-01.parquet").names) == columns
    asked = [{"role": "user", "content": "What does this say? <concept><INJECT></concept>"}]
    assert table.column("prompt").to_pylist() == [asked] * len(table)
    for said, answer in zip(table.column("api_explanation").to_pylist(), table.column("response").to_pylist()):
        assert answer == f"<explanation>\n{said}\n</explanation>"
    meta = yaml.safe_load((tmp_path / "r/warm_start-layer-01.parquet.nla_meta.yaml").read_text())
    assert meta["kind"] == "nla_dataset" and meta["extraction"]["norm"] == "none"
    assert meta["extraction"]["layer_index"] == 1 and meta["extraction"]["d_model"] == target.d_model
    prompt = build_verbalizer_prompt(target.tokenizer, TEMPLATES.verbalizer, MARKER)
    assert meta["tokens"]["injection_token_id"] == prompt.marker_id and meta["tokens"]["injection_char"] == MARKER
    assert meta["prompt_templates"] == {"av": TEMPLATES.verbalizer, "ar": TEMPLATES.reconstructor}
    for file in (tmp_path / "r").glob("*-layer-02*"):
        file.unlink()
    read = source(tmp_path / "r")
    assert read.manifest is None and read.layers == [1]
    whole = [stored_rows(read, split, target.d_model, False) for split in preparing.FRACTIONS]
    assert sum(map(len, whole)) == 180
    explained = stored_rows(read, "warm_start", target.d_model, True)
    texts = explained.take(0, len(explained)).column(format.EXPLANATION).to_pylist()
    assert all(isinstance(one, str) and "harbour" in one for one in texts)


def test_files_built_for_training_are_read_by_their_answers(prepared: Path, target: Target, tmp_path: Path):
    """The released code's warm-start files have tagged answers and no column of plain explanations."""
    path = write_released(source(prepared), tmp_path / "r", target.tokenizer, TEMPLATES, MARKER)[-1]
    table = pq.read_table(path)
    answers = table.column("response").to_pylist()
    assert len(answers) > 4
    said, answers[0], answers[1] = table.column("api_explanation").to_pylist(), "no tags", None
    table = table.drop_columns(["api_explanation", "response"]).append_column(
        "response", pa.array(answers, pa.string())
    )
    for other in (tmp_path / "r").glob("*"):
        if not other.name.startswith(path.name):
            other.unlink()
    pq.write_table(table, path, write_page_checksum=True)
    read = ShardSource(str(tmp_path / "r"), {"warm_start": 1.0}, "nla", 1)
    rows = stored_rows(read, "warm_start", target.d_model, True, layer=2)
    found = rows.take(0, len(rows))
    assert found.column(format.EXPLANATION).to_pylist() == said[2:]
    assert np.array_equal(format.vectors(found), format.vectors(table)[2:])


def test_evaluation_reads_the_documents_of_a_split(prepared: Path):
    documents = source(prepared).documents("test")
    assert {document.id for document in documents} == {
        name for file, table in preparing.tables(prepared, 1).items() if file.startswith("test")
        for name in table.column("doc_id").to_pylist()
    }  # fmt: skip
    assert all(text(int(d.id.rpartition(":")[2])).startswith(d.text) for d in documents)


def test_every_teacher_and_corpus_composes(tmp_path: Path, tiny_folder: str):
    (tmp_path / "t.txt").write_text("text")
    for teacher in sorted(path.stem for path in (ROOT / "conf/teacher").glob("*.yaml")):
        price = ["teacher.price.input=1", "teacher.price.output=5"] if teacher in ("anthropic", "openai") else []
        named = ["teacher.model=m"] if teacher not in ("none", "truth") else []
        cfg = compose("prepare", ["corpus=data", "experiment=world", f"teacher={teacher}", *named, *price])
        preparing.check_prepare(cfg)
    for corpus in (["corpus=files", f"corpus.path={tmp_path}"], ["corpus=hub", "corpus.dataset=a/b"], ["corpus=data"]):
        preparing.check_prepare(compose("prepare", ["experiment=world", *corpus]))


@pytest.mark.slow
def test_from_a_corpus_to_a_published_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """One command each: corpus to shards with a teacher over real HTTP, three stages, evaluation, a dry push."""
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "texts.jsonl", 120)
    model = ["model=world", "layer.index=1"]
    with serving() as (service, url):
        teacher = ["teacher=server", "teacher.model=m", f"teacher.base_url={url}"]
        given = ["prepare", "experiment=text", *model, "corpus=files", "corpus.path=texts.jsonl", *teacher]
        assert main([*given, *preparing.OPTIONS]) == 0
        assert service.seen and "passages to explain" in capsys.readouterr().out
    pair = app.train(check_train(compose("train", train_overrides(model))))
    assert (pair / "verbalizer/nla_meta.yaml").is_file() and (pair / "reconstructor/value_head.safetensors").is_file()
    sizes = ["evaluation.documents=8", "evaluation.max_new_tokens=8"]
    evaluation = evaluating.evaluate(check_evaluate(compose("evaluate", [f"nla={pair}", *sizes])))
    metrics = json.loads((evaluation / "metrics.json").read_text())
    assert metrics["documents"] > 0 and metrics["model"] == "world" and metrics["layer"] == 1
    push = ["publish", str(pair), "me/pair", "--metrics", str(evaluation / "metrics.json"), "--licence", "apache-2.0"]
    assert main([*push, "--dry-run"]) == 0
    assert f"{metrics['fve']:.3f}" in Path("published/av/README.md").read_text()
    back = NLA.from_pretrained(verbalizer="published/av", reconstructor="published/ar")
    assert back.base_model == "world" and back.layer == 1


def train_overrides(model: list[str]) -> list[str]:
    """A run of a few steps on `prepared/text`."""
    short = []
    for stage, rows in (("verbalizer", 8), ("reconstructor", 8), ("joint", 4)):
        short += [f"stage.{stage}.steps=2", f"stage.{stage}.data.batch_size={rows}"]
        short += [f"stage.{stage}.trainer.val_check_interval=2", f"stage.{stage}.trainer.log_every_n_steps=1"]
    sizes = ["data.validation_documents=4", "sampling.group_size=2", "sampling.max_new_tokens=8"]
    sizes += ["stage.joint.gate_rows=0"]
    return ["experiment=text", *model, "data=shards", "data.path=prepared/text", *sizes, *short]
