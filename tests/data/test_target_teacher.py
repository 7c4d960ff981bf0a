"""Texts from the target's own expectations: what each line says is what the target computes, read the slow way."""

from pathlib import Path

import pytest
import torch
from support.models import CORPUS, make_model, make_tokenizer

from nla.data.teachers import Passage, TargetTeacher, Teacher
from nla.data.teachers.expectations import Expectation, expectations
from nla.data.teachers.target import distinctive
from nla.errors import ConfigError
from nla.models.target import Target

TEXT = CORPUS[0] + " " + CORPUS[2]
LINES = {"about": 2, "quoted": 3, "expected": 2, "continued": 4}


def teacher(**changes: int) -> TargetTeacher:
    return TargetTeacher("world", **{**LINES, **changes})


def expectation(*words: tuple[str, float], continuation: str = "on the road") -> Expectation:
    return Expectation([("harbour", 3.0), ("town", 1.0), ("Harbour", 2.0), ("tide", 4.5)], list(words), continuation)


def prefixes_of(text: str) -> list[str]:
    """The text up to the end of some of its tokens, and two that no token of it ends."""
    tokenizer = make_tokenizer()
    ends = [end for _, end in tokenizer(text, return_offsets_mapping=True)["offset_mapping"]]
    return [text[:end] for end in ends[3::9]] + [text, "Something else.", CORPUS[1][:20]]


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma3", "gpt2"])
def test_shared_reading_expects_what_each_text_alone_does(family: str):
    model, tokenizer = make_model(family), make_tokenizer()
    texts = prefixes_of(TEXT)
    read = dict(expectations(model, tokenizer, texts, 4))
    assert sorted(read) == list(range(len(texts)))
    for index, text in enumerate(texts):
        tokens = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            logits = model(tokens).logits.float()
        row = tokens
        for _ in range(4):
            with torch.no_grad():
                row = torch.cat([row, model(row).logits[:, -1:].argmax(-1)], 1)
        assert read[index].continuation == tokenizer.decode(row[0, tokens.shape[1] :], skip_special_tokens=True), text
        nats = -logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None]).sum()
        assert sum(n for _, n in read[index].surprisal) <= float(nats) + 1e-3
        shares = logits[0, -1].softmax(-1)
        word, probability = read[index].next_words[0]
        spelled = [i for i in shares.topk(64).indices.tolist() if tokenizer.decode([i]).strip() == word]
        assert probability == pytest.approx(float(shares[spelled].sum()), rel=1e-4)


def test_surprisal_of_a_word_is_that_of_its_tokens():
    model, tokenizer = make_model("qwen3"), make_tokenizer()
    text = "Tom walks to the harbour"
    ((_, result),) = expectations(model, tokenizer, [text], 0)
    encoded = tokenizer(text, return_offsets_mapping=True)
    tokens = torch.tensor([encoded["input_ids"]])
    with torch.no_grad():
        nats = -model(tokens).logits[0, :-1].float().log_softmax(-1).gather(1, tokens[0, 1:, None]).squeeze(1)
    start = text.index("harbour")
    expected = sum(float(n) for n, (_, end) in zip(nats, encoded["offset_mapping"][1:], strict=True) if end > start)
    ((_, without),) = expectations(model, tokenizer, [text], 0, surprisal=False)
    assert without.surprisal == [] and without.next_words == result.next_words
    assert [word for word, _ in result.surprisal] == ["walks", "harbour"]
    assert dict(result.surprisal)["harbour"] == pytest.approx(expected, rel=1e-4)


def test_three_lines_each_of_which_can_be_switched_off():
    words = [("sea", 0.6), ("road", 0.1), ("hill", 0.05)]
    text = 'He said "we walk to the <harbour>" at'
    assert teacher().describe(text, expectation(*words)).splitlines() == [
        "It is about harbour, tide.",
        'After "at" comes surely "sea" or "road", as in "on the road".',
        'It just said "the harbour at".',
    ]
    assert teacher(about=0, quoted=0, continued=0).describe(text, expectation(*words)) == (
        'Next comes surely "sea" or "road".'
    )
    assert teacher(about=0, quoted=0, expected=0).describe(text, expectation(*words)) == (
        'Next comes as in "on the road".'
    )
    assert teacher(about=0, expected=3, quoted=1, continued=0).describe(text, expectation(*words)) == (
        'After "at" comes surely "sea", "road" or "hill".\nIt just said "at".'
    )
    assert teacher(about=0, continued=0).describe('"', expectation(*words)) == 'Next comes surely "sea" or "road".'
    likely = [teacher(about=0, quoted=0, continued=0).describe("a", expectation(("sea", p))) for p in (0.3, 0.1)]
    assert likely == ['Next comes probably "sea".', 'Next comes perhaps "sea".']


def test_distinctive_words_count_all_occurrences_and_keep_the_order():
    assert distinctive([("a", 1.0), ("bb", 3.0), ("A", 2.5), ("c", 3.2)], 2) == ["a", "c"]
    assert distinctive([], 2) == []


def test_a_mistake_names_the_key():
    with pytest.raises(ConfigError, match="teacher.quoted=-1"):
        teacher(quoted=-1)
    with pytest.raises(ConfigError, match="all 0; switch one line on"):
        teacher(about=0, quoted=0, expected=0, continued=0)


def test_it_is_a_teacher_and_its_texts_depend_on_its_lines_alone(tmp_path: Path):
    one = teacher()
    assert isinstance(one, Teacher) and one.fingerprint() == teacher().fingerprint() != teacher(about=1).fingerprint()
    one.open(tmp_path, ("</text>",))
    passages = [Passage("d", "This is a diary. The rain falls on the town"), Passage("d", "This is a diary.")]
    texts = [explanation.text for explanation in one.explain(passages)]
    again = [explanation.text for explanation in reversed(one.explain(passages[::-1]))]
    assert texts == again and all(text and text.count("\n") == 2 for text in texts)
    assert 'It just said "on the town".' in str(texts[0]) and 'After "town" comes' in str(texts[0])
    assert one.estimate(passages).usd == 0
    one.open(tmp_path, ("just said",))
    assert {explanation.status for explanation in one.explain(passages)} == {"malformed"}


def test_a_loaded_target_is_used_instead_of_a_copy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nla.data.teachers.target.load_model", lambda *_: pytest.fail("loaded again"))
    one = teacher()
    target = Target(make_model("qwen3"), make_tokenizer(), 1)
    target.loaded_as = ("world", "float32", None)
    one.share(target)
    (explanation,) = one.explain([Passage("d", "Tom walks to the harbour")])
    assert explanation.status == "ok" and 'It just said "to the harbour".' in str(explanation.text)


def test_a_target_of_another_type_is_no_substitute(monkeypatch: pytest.MonkeyPatch):
    loads = []

    def load(*given: object) -> object:
        loads.append(given)
        return make_model("qwen3")

    monkeypatch.setattr("nla.data.teachers.target.load_model", load)
    monkeypatch.setattr("nla.data.teachers.target.load_tokenizer", lambda *_: make_tokenizer())
    one = TargetTeacher("world", dtype="bfloat16", **LINES)
    target = Target(make_model("qwen3"), make_tokenizer(), 1)
    target.loaded_as = ("world", "float32", None)
    one.share(target)
    one.explain([Passage("d", "Tom walks to the harbour")])
    assert loads == [("world", "bfloat16", None)]
