"""Claims of real text: parsed from the teacher's sentences, judged by the text and the target's own distribution."""

import pytest
from support.models import make_model, make_tokenizer

from nla.data.source import GroundTruth
from nla.data.teachers.expectations import expectations
from nla.data.teachers.target_claims import TargetGroundTruth, are_descriptions, last_words, parse_description

TEXT = "Tom walks to the harbour and the"
DOCUMENT = TEXT + " boat is blue"


@pytest.fixture(scope="module")
def truth() -> TargetGroundTruth:
    return TargetGroundTruth(make_model("qwen3"), make_tokenizer(), {"d": DOCUMENT, "e": TEXT}, [TEXT])


def judged(truth: TargetGroundTruth, explanation: str, document: str = "d") -> list[tuple[str, str, bool]]:
    return [(claim.kind, claim.value, claim.true) for claim in truth.claims(explanation, document, TEXT)]


def test_each_sentence_of_the_teacher_is_parsed_and_the_continuation_is_no_claim() -> None:
    text = (
        'It is about harbour, tide.\nAfter "at" comes surely "sea", "road" or "sea", as in "on the road".\n'
        'It just said "the harbour at".'
    )
    assert parse_description(text) == [
        ("topic", "harbour"), ("topic", "tide"), ("last", "at"), ("expected", "sea"), ("expected", "road"),
        ("read", "the"), ("read", "harbour"),
    ]  # fmt: skip
    assert parse_description('After "at" comes as in "on the road".') == [("last", "at")]
    assert parse_description('Next comes as in "on the road".') == []
    assert parse_description("A poem.\n\nIt is about sea.") == [("unparsed", "A poem."), ("topic", "sea")]


def test_a_text_counts_as_a_description_by_its_sentences() -> None:
    assert are_descriptions(["It is about sea.", None])
    assert not are_descriptions(["A poem.", "It is about sea.", None])
    assert not are_descriptions([])


def test_a_topic_may_come_later_in_the_document(truth: TargetGroundTruth) -> None:
    assert judged(truth, "It is about boat, Harbour, sea, har.") == [
        ("topic", "boat", True), ("topic", "Harbour", True), ("topic", "sea", False), ("topic", "har", False)
    ]  # fmt: skip
    assert judged(truth, "It is about boat.", document="e") == [("topic", "boat", False)]


def test_quoted_words_were_read_lately(truth: TargetGroundTruth) -> None:
    assert judged(truth, 'It just said "harbour boat the".') == [
        ("read", "harbour", True), ("read", "boat", False), ("last", "the", True)
    ]  # fmt: skip
    assert judged(truth, 'It just said "and".') == [("last", "and", False)]
    assert judged(truth, 'It just said " ".') == [("unparsed", 'It just said " ".', False)]
    long = "first " + "x " * 12
    assert "first" not in last_words(long, 12) and last_words('he said "go" <now>', 2) == ["go", "now"]


def test_an_expected_word_is_among_the_target_s_own(truth: TargetGroundTruth) -> None:
    ((_, expectation),) = expectations(make_model("qwen3"), make_tokenizer(), [TEXT], 0)
    words = [word for word, _ in expectation.next_words]
    assert judged(truth, f'After "the" comes perhaps "{words[19]}" or "{words[20]}".') == [
        ("last", "the", True), ("expected", words[19], True), ("expected", words[20], False)
    ]  # fmt: skip


def test_facts_are_what_a_perfect_description_would_name(truth: TargetGroundTruth) -> None:
    kinds = dict(truth.facts("d", TEXT))
    assert kinds["last"] == "the" and set(kinds) == {"topic", "expected", "last"}
    assert isinstance(truth, GroundTruth)
    claims = truth.claims(f'After "the" comes surely "{kinds["expected"]}".', "d", TEXT)
    assert {(c.kind, c.value) for c in claims if c.true} >= {("expected", kinds["expected"]), ("last", "the")}


def test_a_line_in_other_words_is_false(truth: TargetGroundTruth) -> None:
    assert judged(truth, "A poem.") == [("unparsed", "A poem.", False)]
