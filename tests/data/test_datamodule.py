"""Positions, batches and the loader: exact contexts, an order that restarts repeat, shards, exact resume."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.loaders import Corpus, loader, record, take
from support.models import CORPUS, make_tokenizer
from transformers import PreTrainedTokenizerBase

from nla.config.check import check_train
from nla.config.compose import compose
from nla.data import Document
from nla.data.build import build_data
from nla.data.datamodule import NLADataModule
from nla.data.document_rows import DocumentReader
from nla.data.documents import ReadingPlan
from nla.data.positions import EARLY, draw_positions, eligible_positions, keyed_fraction, keyed_seed
from nla.data.rows import Selection
from nla.data.teachers import Passage, TargetTeacher
from nla.data.warm_start import Context
from nla.errors import ConfigError, DataError
from nla.models.target import Target


def on_rank(data: NLADataModule, rank: int, ranks: int) -> NLADataModule:
    progress = SimpleNamespace(total=SimpleNamespace(processed=0))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    data.trainer = SimpleNamespace(world_size=ranks, global_rank=rank, fit_loop=loop)  # pyright: ignore
    return data


def test_choices_depend_only_on_names():
    assert keyed_seed("a", 1) == keyed_seed("a", 1) != keyed_seed("a", 2)
    assert keyed_seed("ab", "c") != keyed_seed("a", "bc")
    fractions = [keyed_fraction("key", number) for number in range(2000)]
    assert min(fractions) >= 0 and max(fractions) < 1 and abs(sum(fractions) / 2000 - 0.5) < 0.03
    chosen = draw_positions(range(5, 50), 8, seed=3, document_id="x")
    assert chosen == sorted(set(chosen)) == draw_positions(range(5, 50), 8, seed=3, document_id="x")
    assert chosen != draw_positions(range(5, 50), 8, seed=3, document_id="y")


def test_a_share_of_the_positions_is_drawn_from_the_first_tokens():
    drawn = [draw_positions(range(5, 105), 4, 0, str(number), early=0.5) for number in range(400)]
    assert all(chosen == sorted(set(chosen)) and len(chosen) == 4 for chosen in drawn)
    share = sum(position < 5 + EARLY for chosen in drawn for position in chosen) / 1600
    assert abs(share - (0.5 + 0.5 * EARLY / 100)) < 0.04
    assert draw_positions(range(3), 3, 0, "short", early=1.0) == [0, 1, 2]
    assert len(draw_positions(range(20), 12, 0, "more than are early", early=1.0)) == 12


def test_only_training_reads_early_positions_more_often(tokenizer: PreTrainedTokenizerBase):
    reader = DocumentReader(Corpus(30), tokenizer, ReadingPlan(4, 0, 200, 0, early=1.0), Taught())
    plain = DocumentReader(Corpus(30), tokenizer, ReadingPlan(4, 0, 200, 0), Taught())

    def positions(reader: DocumentReader, shuffled: bool) -> list[int]:
        rows = reader(Selection("joint", shuffled, False, None, 0))
        return [position for item in rows.prepared for position in item.positions]

    assert max(positions(reader, shuffled=True)) < EARLY <= max(positions(plain, shuffled=True))
    assert positions(reader, shuffled=False) == positions(plain, shuffled=False)
    fingerprints = [each(Selection("joint", True, False, None, 0)).fingerprint() for each in (reader, plain)]
    assert fingerprints[0] != fingerprints[1]


def test_positions_leave_out_specials_short_context_and_split_characters():
    offsets = [(0, 0), (0, 2), (2, 4), (4, 5), (4, 5), (5, 7), (0, 0)]
    special = [True, False, False, False, False, False, True]
    assert eligible_positions(offsets, special, min_context=1) == [2, 4, 5]
    assert eligible_positions(offsets, special, min_context=3) == [4, 5]


@pytest.mark.parametrize("bos", [False, True])
def test_a_batch_holds_exact_contexts(bos: bool):
    tokenizer = make_tokenizer(bos)
    batch = take(loader(tokenizer), 1)[0]
    assert len(batch) == 8 and batch.tokens.shape[0] == 2
    for row, position, document, text in zip(batch.row, batch.position, batch.document, batch.text):
        ids = batch.tokens[row, : position + 1].tolist()
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert batch.mask[row, position] and position >= 5 + bos
        assert text.startswith(document.replace("-", " "))
        assert int(batch.tokens[row, position]) not in tokenizer.all_special_ids
    assert batch.explanation is None
    padded = ~batch.mask
    assert (batch.tokens[padded] == tokenizer.pad_token_id).all()
    assert (batch.mask.int().diff(dim=1) <= 0).all()  # padding on the right only


class Taught:
    """Texts that are written when they are due; nothing to say where a context's end is odd."""

    def __init__(self) -> None:
        self.asked: list[list[Context]] = []

    def texts(self, contexts: Sequence[Context]) -> list[str | None]:
        self.asked.append(list(contexts))
        return [None if c.end % 2 else f"{c.document.id} to {c.end}" for c in contexts]

    def lacks(self, document: Document, end: int) -> bool:
        return False


def test_texts_by_a_teacher_are_written_a_batch_at_a_time_when_it_is_due(tokenizer: PreTrainedTokenizerBase):
    taught = Taught()
    data = NLADataModule(
        DocumentReader(Corpus(10), tokenizer, ReadingPlan(4, 5, 200, 0), taught),
        split="warm_start", explanations=True, batch_size=8, validation_documents=None, seed=0, num_workers=0,
    )  # fmt: skip
    data.setup("fit")
    assert not taught.asked
    (batch,) = take(data, 1)
    (contexts,) = taught.asked
    kept = [context for context in contexts if context.end % 2 == 0]
    assert len(contexts) == 8 and 0 < len(kept) < 8
    assert batch.explanation == [f"{context.document.id} to {context.end}" for context in kept]
    assert batch.text == [context.document.text[: context.end] for context in kept]
    assert len(batch.row) == len(batch.position) == len(batch.document) == len(kept)


def test_a_persons_text_is_explained_by_the_target_itself(tiny_folder: str, tmp_path: Path):
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text(f"{number} " + " ".join(CORPUS[number % 3 :] + CORPUS[:2]))
    settings = check_train(compose("train", ["experiment=text", f"model.path={tiny_folder}", "data=text_self",
                                             f"data.path={tmp_path}"]))  # fmt: skip
    model, stage = settings.model, settings.stage["verbalizer"].data
    target = Target.from_pretrained(model.id, 1, model.dtype, model.revision)
    data = build_data(settings.data, stage, target, 0)
    (batch,) = take(data, 1)
    teacher = TargetTeacher(model.id, about=0, quoted=1, expected=3, continued=0)
    assert batch.explanation == [text.text for text in teacher.explain([Passage("", text) for text in batch.text])]
    said = sum('It just said "' in text for text in batch.explanation)
    assert 2 * said > len(batch.explanation)  # not of a text that ends with a lone quotation mark


def test_the_target_reads_a_batch(tokenizer: PreTrainedTokenizerBase, target: Target):
    batch = take(loader(tokenizer), 1)[0]
    activation = target(batch.tokens, batch.mask, batch.row, batch.position)
    alone = target.read([batch.text[3]])
    if alone.position[0] == int(batch.position[3]):
        torch.testing.assert_close(activation[3], alone.activation[0], atol=1e-5, rtol=1e-4)
    assert activation.shape == (8, target.d_model)


def test_an_epoch_holds_every_document_once(tokenizer: PreTrainedTokenizerBase):
    data = loader(tokenizer, batch_size=12)  # three documents a step: epochs of ten end inside a batch
    seen = [document for batch in take(data, 10) for document in batch.document[::4]]
    for epoch in range(3):
        assert sorted(seen[10 * epoch : 10 * epoch + 10]) == sorted(f"joint-{n}" for n in range(10))
    assert seen[:10] != seen[10:20]


def test_ranks_share_the_batches_of_one_process(tokenizer: PreTrainedTokenizerBase):
    whole = take(loader(tokenizer, batch_size=16), 6)
    parts = [take(on_rank(loader(tokenizer, batch_size=16), rank, 2), 6) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        assert batch.document == parts[0][step].document + parts[1][step].document
        assert batch.text == parts[0][step].text + parts[1][step].text


@pytest.mark.parametrize("workers", [2])
def test_loader_workers_change_nothing(tokenizer: PreTrainedTokenizerBase, workers: int):
    alone, many = take(loader(tokenizer), 7), take(loader(tokenizer, num_workers=workers), 7)
    assert [batch.text for batch in alone] == [batch.text for batch in many]


@pytest.mark.parametrize("ranks", [2, 4])
def test_validation_is_the_same_on_any_number_of_ranks(tokenizer: PreTrainedTokenizerBase, ranks: int):
    corpus = Corpus(37)  # three batches of sixteen documents at most
    whole = list(loader(tokenizer, corpus).val_dataloader())
    parts = [list(on_rank(loader(tokenizer, corpus), rank, ranks).val_dataloader()) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1
    turns = [batch for turn in zip(*parts, strict=True) for batch in turn]
    assert [batch.text for batch in turns if not batch.padding] == [batch.text for batch in whole]
    assert sum(batch.padding for batch in turns) == len(turns) - 3
    assert len({document for batch in whole for document in batch.document}) == 37


def test_some_documents_are_chosen_for_validation(tokenizer: PreTrainedTokenizerBase):
    corpus = Corpus(11)
    few = loader(tokenizer, corpus, validation_documents=3)
    assert len({document for batch in few.val_dataloader() for document in batch.document}) == 3


def test_explanations_stay_with_their_rows(tokenizer: PreTrainedTokenizerBase):
    data = loader(tokenizer, split="warm_start", explanations=True)
    for batch in (take(data, 1)[0], next(iter(data.val_dataloader()))):
        assert batch.explanation == [f"{d} to {len(t)}" for d, t in zip(batch.document, batch.text)]
    assert next(iter(data.test_dataloader())).explanation is None


def test_given_explanations_are_read_at_the_last_token(tokenizer: PreTrainedTokenizerBase):
    corpus = Corpus(10, given=True)
    batch = take(loader(tokenizer, corpus, split="warm_start", explanations=True), 1)[0]
    assert len(batch) == batch.tokens.shape[0] == 8
    assert batch.explanation == [f"all of {document.split('-')[1]}" for document in batch.document]
    assert len(take(loader(tokenizer, corpus), 1)[0].row.unique()) == 2  # joint training reads them anywhere


def test_rows_without_an_explanation_are_left_out(tokenizer: PreTrainedTokenizerBase):
    class Sparse(Corpus):
        def explanation(self, document: Document, end: int, seed: int) -> str | None:
            return None if end < 60 else "late"

    batch = take(loader(tokenizer, Sparse(10), explanations=True), 1)[0]
    assert 0 < len(batch) < 8 and min(map(len, batch.text)) >= 60


def test_mistakes_name_the_fix(tokenizer: PreTrainedTokenizerBase):
    with pytest.raises(DataError, match=r"Corpus: split 'joint' has no document .*needs 304 tokens.*data.min_context"):
        loader(tokenizer, min_context=300).setup("fit")
    with pytest.raises(DataError, match="it is empty"):
        loader(tokenizer, Corpus(0)).setup("fit")
    with pytest.raises(ConfigError, match="batch_size=10 .* multiple of 4 .*try 8"):
        take(loader(tokenizer, batch_size=10), 1)
    data = loader(tokenizer)
    with pytest.raises(DataError, match="other joint data"):
        data.load_state_dict({**loader(tokenizer, seed=1).state_dict()})


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_continues_with_the_next_document(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Any, workers: int
):
    straight = record(loader(tokenizer), tmp_path / "straight", 12)
    assert len(straight) == 12
    first = record(loader(tokenizer, num_workers=workers), tmp_path / "parts", 4)
    # the second run dies in its sixth step; its last state was saved after the fourth
    second = record(loader(tokenizer, num_workers=workers), tmp_path / "parts", 12, fail_at=5)
    third = record(loader(tokenizer, num_workers=workers), tmp_path / "parts", 12)
    assert first == straight[:4]
    assert second == straight[4:9]
    assert third == straight[8:]
    state = torch.load(tmp_path / "parts" / "last.ckpt", weights_only=True)
    assert state["NLADataModule"]["consumed_documents"] == 24
