"""Pretraining of a small target: tokenizer, lessons, the gist loss and resuming."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from nla.data.world import WorldSource
from nla.data.world.statements import STEMS, parse_statements
from nla.errors import DataError
from nla.models.backbone import load_model, load_tokenizer
from nla.models.explanations import parse_explanation
from nla.models.prompts import build_verbalizer_prompt, find_marker
from nla.pretraining.gist import GistLoss
from nla.pretraining.lessons import Lessons
from nla.pretraining.loop import Architecture, Recipe, batches, frequencies, pretrain
from nla.pretraining.tokenizer import END, MARKER, PAD, TAGS, train_tokenizer

VERBALIZER = "Describe this text: <concept>{injection_char}</concept>"
RECONSTRUCTOR = "<text>{explanation}</text><summary>"
TINY = Architecture(
    d_model=16, layers=2, heads=2, kv_heads=1, head_dim=8, d_ff=16, vocab=1792, context=512, initializer_range=0.06
)
RECIPE = Recipe(
    steps=6, batch_size=2, muon_lr=0.01, adamw_lr=2e-3, weight_decay=0.01, warmup_steps=2, final_fraction=0.05,
    gist_weight=1.0, gist_layer=0, gist_horizon=40, gist_rare=1e-3, gist_share=0.25, validate_every=2, bf16=False,
    compile=False, seed=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def source() -> WorldSource:
    return WorldSource({"pretrain": 60, "validation": 4, "test": 12})


@pytest.fixture(scope="module")
def small_tokenizer(source: WorldSource) -> PreTrainedTokenizerBase:
    return train_tokenizer([d.text for d in source.documents("pretrain")], 700, tuple(STEMS.values()))


@pytest.fixture(scope="module")
def lessons(source: WorldSource, small_tokenizer: PreTrainedTokenizerBase) -> Lessons:
    return Lessons(source, small_tokenizer, VERBALIZER, RECONSTRUCTOR)


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# Tokenizer


@pytest.mark.parametrize(
    "text",
    [
        "Then Tom walked between the pier and the boats.",
        " two  spaces, a tab\t and\r\nlines \n\n",
        "Übergrößen, 日本語, العربية, 🙂 e\u0301, \u200b, \x00",
        f"The hero is Tom.<explanation>{MARKER}</explanation> The hero isn't",
        "",
    ],
)
def test_any_text_round_trips(small_tokenizer: PreTrainedTokenizerBase, text: str):
    assert small_tokenizer.decode(ids(small_tokenizer, text), clean_up_tokenization_spaces=False) == text


def test_tags_marker_and_phrases_are_one_token_each(small_tokenizer: PreTrainedTokenizerBase):
    single = [*TAGS, MARKER, PAD, END, "<|user|>", "<|assistant|>", *STEMS.values(), *(f" {s}" for s in STEMS.values())]
    found = [ids(small_tokenizer, text) for text in single]
    assert all(len(row) == 1 for row in found)
    assert len({row[0] for row in found}) == len(single)
    assert find_marker(small_tokenizer) == MARKER
    assert len(ids(small_tokenizer, f"a{MARKER}b")) == 3


def test_special_tokens_and_the_size_of_the_vocabulary(small_tokenizer: PreTrainedTokenizerBase):
    assert len(small_tokenizer) <= 700
    assert (small_tokenizer.pad_token, small_tokenizer.eos_token) == (PAD, END)


def test_chat_template(small_tokenizer: PreTrainedTokenizerBase):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert small_tokenizer.apply_chat_template(turns, tokenize=False) == "<|user|>a<|end|><|assistant|>b<|end|>"
    opened = small_tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert opened == "<|user|>a<|end|><|assistant|>"
    prompt = build_verbalizer_prompt(small_tokenizer, VERBALIZER, MARKER)
    assert prompt.tokens[prompt.position] == prompt.marker_id
    assert prompt.end_of_turn == small_tokenizer.eos_token_id


# Lessons


def test_lessons_are_keyed_by_seed_and_number(lessons: Lessons, source: WorldSource):
    documents = source.documents("pretrain")[:8]
    assert lessons.tokens(documents, 5) == lessons.tokens(documents, 5)
    assert [lessons.text(document, 5 + i) for i, document in enumerate(documents)] == [
        lessons.text(document, 5 + i) for i, document in reversed(list(enumerate(documents)))
    ][::-1]
    texts = {lessons.text(documents[0], number) for number in range(10)}
    assert len(texts) > 3
    assert replace(lessons, seed=1).tokens(documents, 5) != lessons.tokens(documents, 5)


def test_three_kinds_of_lesson(lessons: Lessons, source: WorldSource):
    document = source.documents("pretrain")[0]
    assert replace(lessons, shares=(1, 0, 0)).text(document, 0) == document.text + END
    described = replace(lessons, shares=(0, 1, 0)).text(document, 0)
    question, _, answer = described.partition("<|assistant|>")
    read = question.removeprefix("<|user|>Describe this text: <concept>").removesuffix("</concept><|end|>")
    assert document.text.startswith(read)
    explanation = parse_explanation(answer.removesuffix(END))
    assert explanation is not None
    assert all(claim.true for claim in source.claims(explanation, document.id, read))
    written = replace(lessons, shares=(0, 0, 1)).text(document, 0)
    told, _, rest = written.removeprefix("<text>").partition("</text><summary>")
    assert all(kind for kind, _ in parse_statements(told))
    assert document.text.endswith(rest.removesuffix(END))
    assert len(rest.removesuffix(END)) < len(document.text)


def test_batches_continue_at_any_step(lessons: Lessons, source: WorldSource):
    documents = source.documents("pretrain")
    whole = [batch for batch, _ in zip(batches(lessons, documents, 2, 0, chunk=4), range(10))]
    for first in (3, 4, 7):
        later = [batch for batch, _ in zip(batches(lessons, documents, 2, first, chunk=4), range(10 - first))]
        for (tokens, mask), (again, again_mask) in zip(whole[first:], later, strict=True):
            assert torch.equal(tokens, again)
            assert torch.equal(mask, again_mask)


# Gist loss


def gist(horizon: int, share: float = 1.0) -> GistLoss:
    """Four tokens: the first frequent (weight 0.1 / 0.4), two at most as rare as 0.1 (weight 1), one never seen."""
    return GistLoss(2, torch.tensor([0.4, 0.1, 0.05, 0.0]), horizon=horizon, rare=0.1, share=share)


def test_gist_weights_fall_with_frequency():
    assert torch.allclose(gist(2).weight, torch.tensor([0.25, 1.0, 1.0, 0.0]))


def test_gist_loss_by_hand():
    """The head says 0.1, 0.2, 0.3, 0.4. Bags of the next two of 2 1 0: {1: 1, 0: 0.25}, then {0: 0.25}, then none."""
    loss = gist(2)
    with torch.no_grad():
        loss.head.weight.copy_(torch.tensor([[0.1, 0.0], [0.2, 0.0], [0.3, 0.0], [0.4, 0.0]]).log().clamp_min(-9))
    value = loss(torch.full((1, 3, 2), 5.0), torch.tensor([[2, 1, 0]]), torch.ones(1, 3, dtype=torch.bool))
    first = -(math.log(0.2) + 0.25 * math.log(0.1)) / 1.25
    assert value.item() == pytest.approx((first - math.log(0.1)) / 2, rel=1e-5)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_gist_loss_against_loops_with_padding(share: float):
    torch.manual_seed(0)
    loss = gist(3, share)
    tokens = torch.tensor([[1, 2, 0, 1, 3], [0, 2, 1, 0, 0]])
    lengths = [5, 3]
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    activation = torch.randn(2, 5, 2)
    torch.manual_seed(3)
    drawn = torch.rand(2, 5) < share
    terms = []
    for row, length in enumerate(lengths):
        for place in range(length):
            scores = loss.head(loss.norm(activation[row, place])).log_softmax(0)
            bag = [int(tokens[row, later]) for later in range(place + 1, min(place + 4, length))]
            weights = [loss.weight[token].item() for token in bag]
            if drawn[row, place] and sum(weights) > 0:
                terms.append(-sum(weight * scores[token] for weight, token in zip(weights, bag)) / sum(weights))
    torch.manual_seed(3)
    assert len(terms) == 5 if share == 1 else 0 < len(terms) < 5
    assert torch.allclose(loss(activation, tokens, mask), torch.stack(terms).mean(), atol=1e-6)


def test_gist_loss_is_zero_where_no_position_was_drawn():
    loss = gist(2, share=0.0)
    activation = torch.randn(1, 3, 2, requires_grad=True)
    value = loss(activation, torch.tensor([[2, 1, 0]]), torch.ones(1, 3, dtype=torch.bool))
    value.backward()
    assert value.item() == 0


def test_frequencies(small_tokenizer: PreTrainedTokenizerBase, source: WorldSource):
    found = frequencies(small_tokenizer, source.documents("pretrain"))
    assert found.sum().item() == pytest.approx(1, abs=1e-5)
    assert found.argmax().item() in (ids(small_tokenizer, ".")[0], ids(small_tokenizer, " the")[0])


# The loop


@pytest.fixture(scope="module")
def trained(lessons: Lessons, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder, lines = tmp_path_factory.mktemp("target") / "straight", []
    model = pretrain(lessons, TINY, RECIPE, folder, log=lines.append)
    return SimpleNamespace(folder=folder, model=model, lines=lines)


def test_pretraining_writes_a_plain_hugging_face_folder(trained: SimpleNamespace, lessons: Lessons):
    names = {path.name for path in trained.folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "curve.csv", "pretraining.json"} <= names
    assert not [name for name in names if name.startswith("resume")]
    model, tokenizer = load_model(str(trained.folder)), load_tokenizer(str(trained.folder))
    assert tokenizer.get_vocab() == lessons.tokenizer.get_vocab()
    assert tokenizer.chat_template == lessons.tokenizer.chat_template
    tokens = torch.tensor([ids(tokenizer, "Then Tom came to the harbour.")])
    with torch.no_grad():
        assert torch.equal(model(input_ids=tokens).logits, trained.model.eval()(input_ids=tokens).logits)
    record = json.loads((trained.folder / "pretraining.json").read_text())
    assert record["recipe"]["steps"] == 6
    assert record["architecture"]["d_model"] == 16


def test_pretraining_records_its_curve(trained: SimpleNamespace):
    rows = (trained.folder / "curve.csv").read_text().splitlines()
    assert rows[0] == "step,seconds,loss,gist_loss,validation_loss"
    assert [row.split(",")[0] for row in rows[1:]] == ["2", "4", "6"]
    assert len(trained.lines) == 3
    assert float(rows[-1].split(",")[2]) < float(rows[1].split(",")[2])


def test_pretraining_resumes_to_the_same_weights(trained: SimpleNamespace, lessons: Lessons, tmp_path: Path):
    """Stopped at step 4 before its checkpoint is written: continues from step 2, to the same weights bit by bit."""

    def stop(line: str) -> None:
        if line.startswith("step 4"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(lessons, TINY, RECIPE, tmp_path, log=stop)
    assert torch.load(tmp_path / "resume.pt", weights_only=True)["step"] == 2
    assert [row.split(",")[0] for row in (tmp_path / "curve.csv").read_text().splitlines()] == ["step", "2", "4"]
    torch.manual_seed(99)
    model = pretrain(lessons, TINY, RECIPE, tmp_path, log=lambda line: None)
    assert [row.split(",")[0] for row in (tmp_path / "curve.csv").read_text().splitlines()] == ["step", "2", "4", "6"]
    assert not (tmp_path / "resume.pt").exists()
    for (name, straight), resumed in zip(trained.model.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(straight, resumed), name


def test_pretraining_without_the_gist_loss(lessons: Lessons, tmp_path: Path):
    pretrain(lessons, TINY, replace(RECIPE, steps=1, gist_weight=0.0), tmp_path, log=lambda line: None)
    assert float((tmp_path / "curve.csv").read_text().splitlines()[1].split(",")[3]) == 0


def test_an_empty_corpus_is_a_data_error(lessons: Lessons, tmp_path: Path):
    empty = replace(lessons, source=WorldSource({"pretrain": 0, "validation": 1}))
    with pytest.raises(DataError, match="'pretrain' has no documents"):
        pretrain(empty, TINY, RECIPE, tmp_path)
