"""The embedded world: documents that never change, and ground truth that holds for every prefix."""

import math
import random
import re
import subprocess
import sys
from itertools import combinations

import pytest
from transformers import PreTrainedTokenizerBase

from nla.data.source import Document, GroundTruth, Source
from nla.data.world import WorldSource
from nla.data.world.generator import _OPENINGS, _SENTENCES, _SLOT, WorldDocument, generate
from nla.data.world.statements import OUTSIDE_IN, STEMS, describe, parse_statements, statement
from nla.data.world.vocabulary import CONTENT, GENRES, KINDS, TOPICS
from nla.errors import ConfigError, DataError
from nla.pretraining.tokenizer import train_tokenizer

SIZES = {"pretrain": 400, "warm_start": 100, "joint": 100, "validation": 50, "test": 100}
SPLITS_TEXT = """
import hashlib
from nla.data.world import WorldSource
source = WorldSource({"test": 40})
parts = []
for document in source.documents("test"):
    parts += [document.text, source.explanation(document, len(document.text) // 2, 3)]
    parts += [str(source.facts(document.id, document.text))]
print(hashlib.sha256("|".join(parts).encode()).hexdigest())
"""

# word -> (kind, value), over names, evidence words and both forms of the verbs
EVIDENCE: dict[str, tuple[str, str]] = {}
for _kind, _values in CONTENT.items():
    for _value in _values:
        for _word in (_value.name, *_value.words, *(form for verb in _value.verbs for form in verb)):
            EVIDENCE[_word] = (_kind, _value.name)


def words(text: str) -> list[tuple[str, int]]:
    """Each word with the character at which it ends."""
    return [(match.group(), match.end()) for match in re.finditer(r"\w+", text)]


@pytest.fixture(scope="module")
def source() -> WorldSource:
    return WorldSource(SIZES)


@pytest.fixture(scope="module")
def documents(source: WorldSource) -> list[WorldDocument]:
    return [generate(document.id) for document in source.documents("pretrain")]


@pytest.fixture(scope="module")
def world_tokenizer(source: WorldSource) -> PreTrainedTokenizerBase:
    texts = [document.text for document in source.documents("pretrain")]
    return train_tokenizer(texts, 1792, tuple(STEMS.values()))


def test_it_offers_both_protocols(source: WorldSource):
    assert isinstance(source, Source)
    assert isinstance(source, GroundTruth)


def test_same_id_same_document(source: WorldSource):
    first = generate("test-000001")
    generate.cache_clear()
    again = generate("test-000001")
    assert again is not first
    assert again == first
    assert generate("test-000002") != first
    assert generate("test-000001", seed=1).text != first.text


def test_same_in_every_process_whatever_the_hash_seed():
    digests = {
        subprocess.run(
            [sys.executable, "-c", SPLITS_TEXT],
            env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1", "PYTHONPATH": "."},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_known_document_never_changes():
    """The packaged target was trained on these documents: this test catches any change of the world."""
    assert generate("pretrain-000000").text.startswith(
        "Officially, on a hot night Clara found a ring. At the village there lived Clara, a farmer."
    )


def test_length_words_and_facts(documents: list[WorldDocument], world_tokenizer: PreTrainedTokenizerBase):
    lengths = [len(ids) for ids in world_tokenizer([document.text for document in documents])["input_ids"]]
    assert min(lengths) >= 60
    assert max(lengths) <= 200
    distinct = {word.lower() for document in documents for word, _ in words(document.text)}
    assert len(distinct) >= 500
    for document in documents:
        assert set(document.facts) == set(KINDS) - {"ending"}
        assert 8 <= len(document.known()) <= 12
        assert len(document.facts) >= 8
    assert len({document.facts["genre"] for document in documents}) == len(GENRES) >= 4


def test_combinations_of_facts_far_outnumber_documents(documents: list[WorldDocument]):
    count = math.prod(len(values) for kind, values in KINDS.items() if kind != "ending")
    assert count > 1_000_000 * 100
    assert len({tuple(document.facts.items()) for document in documents}) == len(documents)


def test_every_evidence_word_belongs_to_one_value():
    every = [
        word
        for values in CONTENT.values()
        for value in values
        for word in (value.name, *value.words, *(form for verb in value.verbs for form in verb))
    ]
    assert len(every) == len(set(every)) == len(EVIDENCE)
    assert all(re.fullmatch(r"[A-Za-z]+", word) for word in every)


def test_no_evidence_word_is_a_function_word():
    templates = [*_OPENINGS, *(template for group in _SENTENCES.values() for template in group)]
    fixed = [word for template in templates for word, _ in words(_SLOT.sub(" ", template))]
    verbs = [word for template in templates for _, _, *forms in _SLOT.findall(template) for word in forms if word]
    beginnings = [word for group in GENRES.values() for beginning in group for word, _ in words(beginning)]
    shared = {"he", "she", "an", *fixed, *verbs, *beginnings} & set(EVIDENCE)
    assert not shared
    assert not {word.lower() for word in (*fixed, *beginnings)} & set(EVIDENCE)


def test_no_evidence_word_where_its_value_does_not_hold(documents: list[WorldDocument]):
    for document in documents:
        for word, _ in words(document.text):
            for form in {word, word.lower()} & set(EVIDENCE):
                kind, value = EVIDENCE[form]
                assert document.facts[kind] == value, (document.id, word)


def test_no_beginning_of_another_genre_and_no_verb_of_the_other_tense(documents: list[WorldDocument]):
    slots = [slot for group in (_OPENINGS, *_SENTENCES.values()) for t in group for slot in _SLOT.findall(t) if slot[2]]
    pairs = [(present, past) for *_, present, past in slots]
    pairs += [verb for values in CONTENT.values() for value in values for verb in value.verbs]
    assert not {present for present, _ in pairs} & {past for _, past in pairs}
    for document in documents:
        for genre, beginnings in GENRES.items():
            found = any(re.search(rf"\b{re.escape(beginning)} ", document.text) for beginning in beginnings)
            assert not found or genre == document.facts["genre"], document.id
        body = "".join(segment.text for segment in document.segments if segment.kind != "genre")
        other = {
            pair[document.facts["tense"] == "present"] for pair in pairs
        }  # the verb in "It is recorded" does not count
        body = re.sub(r"\b(\w+) called (?=[A-Z])", r"\1 ", body)  # "a baker called Tom": a participle, in either tense
        assert not other & {word for word, _ in words(body)}, document.id


def test_known_grows_only_with_complete_words(documents: list[WorldDocument]):
    """Compared with a second reading of the text alone: which evidence words are complete in the prefix?"""
    for document in documents[:40]:
        text = document.text
        told = [(EVIDENCE[word], end) for word, end in words(text) if word in EVIDENCE]
        revealed: dict[str, int] = {}
        for (kind, _), end in told:
            revealed.setdefault(kind, end)
        before: dict[str, str] = {}
        for end in range(len(text) + 1):
            known = document.known(end)
            ending = [kind for (kind, _), place in told if place <= end and kind in TOPICS]
            assert known.pop("ending", None) == (ending[-1] if ending else None)
            assert before.items() <= known.items() <= document.facts.items()
            assert set(known) - {"genre", "tense"} == {kind for kind, place in revealed.items() if place <= end}
            before = known
        assert document.known(len(text)) == document.known()


def test_nothing_is_known_of_a_word_cut_short():
    document = generate("pretrain-000000")
    end = document.text.index("Clara")
    assert "hero" not in document.known(end + len("Clara") - 1)
    assert document.known(end + len("Clara"))["hero"] == "Clara"


@pytest.mark.parametrize("kind", KINDS)
def test_statements_parse_back(kind: str):
    for value in KINDS[kind]:
        assert parse_statements(statement(kind, value)) == [(kind, value)]
    first, last = KINDS[kind][0], KINDS[kind][-1]
    assert parse_statements(f"{statement(kind, first)} {statement(kind, last)}") == [(kind, first), (kind, last)]


def test_stems_cannot_be_confused():
    assert set(STEMS) == set(KINDS)
    for one, other in combinations(STEMS.values(), 2):
        assert not one.startswith(other + " ")
        assert not other.startswith(one + " ")


def test_articles_fit_their_values():
    for kind, stem in STEMS.items():
        if stem.endswith(" a"):
            assert not [value for value in KINDS[kind] if value[0] in "aeiou"]


@pytest.mark.parametrize(
    "junk",
    [
        "The weather is purple.",
        "The weather is stormy",  # cut off
        "the weather is stormy.",
        "The weather is stormy sunny.",
        "The weather is.",
        "The sky is stormy.",
        "stormy.",
        "The weather is stormy!",
        "It is true that The weather is stormy.",
    ],
)
def test_junk_is_unparsed(junk: str):
    parsed = parse_statements(junk)
    assert [kind for kind, _ in parsed] == [None]


def test_empty_and_blank_texts_have_no_statements():
    assert parse_statements("") == []
    assert parse_statements(" \n ") == []


def test_describe_puts_the_ending_last():
    facts = {"hero": "Tom", "weather": "stormy", "ending": "job"}
    for seed in range(20):
        text = describe(facts, 3, random.Random(seed))
        assert dict(parse_statements(text)) == facts
        assert text.endswith(statement("ending", "job"))
    assert describe(facts, 9, random.Random(0)).count(".") == 3


def test_warm_start_texts_tell_each_known_fact_with_its_probability():
    source = WorldSource({"warm_start": 60}, statements=0.3, thorough=0.0)
    told = known = 0
    for document in source.documents("warm_start"):
        facts = dict(source.facts(document.id, document.text))
        for seed in range(10):
            parsed = parse_statements(str(source.explanation(document, len(document.text), seed)))
            assert parsed and all(facts[str(kind)] == value for kind, value in parsed)
            told, known = told + len(parsed), known + len(facts)
    assert told / known == pytest.approx(0.3, abs=0.02)


def test_an_emphasized_fact_is_told_more_often_and_the_others_as_often_as_before():
    plain, loud = WorldSource({"test": 400}), WorldSource({"test": 400}, emphasis={"ending": 0.5})
    told: dict[str, list[float]] = {"ending": [0, 0], "others": [0, 0]}
    for document in plain.documents("test"):
        for index, source in enumerate((plain, loud)):
            text = source.explanation(document, len(document.text), 0)
            kinds = [kind for kind, _ in parse_statements(text or "")]
            assert kinds in (sorted(kinds, key=list(STEMS).index), sorted(kinds, key=OUTSIDE_IN.index))
            told["ending"][index] += kinds.count("ending")
            told["others"][index] += len(kinds) - kinds.count("ending")
    assert told["others"][0] == told["others"][1]
    share = (told["ending"][1] - told["ending"][0]) / (400 - told["ending"][0])
    assert abs(share - 0.5) < 0.08
    with pytest.raises(ConfigError, match=r"data\.source\.emphasis: 'colour' is no kind of fact"):
        WorldSource({"test": 1}, emphasis={"colour": 1.0})


def test_both_orders_contain_every_kind():
    assert sorted(OUTSIDE_IN) == sorted(STEMS)


def test_a_share_of_the_warm_start_texts_tells_every_known_fact():
    source = WorldSource({"warm_start": 60}, statements=0.2, thorough=0.25)
    whole = []
    for document in source.documents("warm_start"):
        facts = dict(source.facts(document.id, document.text))
        texts = [str(source.explanation(document, len(document.text), seed)) for seed in range(10)]
        whole += [dict(parse_statements(text)) == facts for text in texts]
        told = [statement(kind, facts[kind]) for kind in OUTSIDE_IN if kind in facts]
        assert " ".join(told) in texts or not any(whole[-10:])
    assert sum(whole) / len(whole) == pytest.approx(0.25, abs=0.05)


def test_describe_tells_in_one_order_unless_shuffled():
    facts = dict.fromkeys(reversed(KINDS), "x") | {"hero": "Tom"}
    told = {describe(facts, 11, random.Random(seed)) for seed in range(20)}
    shuffled = {describe(facts, 11, random.Random(seed), order=None) for seed in range(20)}
    assert told == {" ".join(statement(kind, facts[kind]) for kind in STEMS)}
    assert len(shuffled) > 10


def test_false_unrevealed_and_unparsed_claims_are_false(source: WorldSource):
    document = generate("test-000003")
    place = document.facts["place"]
    wrong = next(value for value in KINDS["place"] if value != place)
    claims = source.claims(
        f"{statement('place', place)} {statement('place', wrong)} Hello.", document.id, document.text
    )
    assert [(claim.kind, claim.value, claim.true) for claim in claims] == [
        ("place", place, True),
        ("place", wrong, False),
        ("unparsed", "Hello.", False),
    ]
    early = document.text[:3]
    assert not source.facts(document.id, early)
    for kind, value in document.known().items():
        assert source.claims(statement(kind, value), document.id, document.text)[0].true
        assert not source.claims(statement(kind, value), document.id, early)[0].true


def test_facts_are_those_of_the_prefix(source: WorldSource):
    document = generate("test-000004")
    half = document.text[: len(document.text) // 2]
    assert source.facts(document.id, half) == list(document.known(len(half)).items())


def test_a_range_gives_that_many_true_statements():
    source = WorldSource(SIZES, statements=(2, 4), thorough=0.0)
    counts = set()
    for document in source.documents("warm_start"):
        ends = [end for _, end in words(document.text)]
        for end in ends[20::7]:
            explanation = source.explanation(document, end, seed=5)
            assert explanation == source.explanation(document, end, seed=5)
            claims = source.claims(explanation or "", document.id, document.text[:end])
            assert all(claim.true for claim in claims)
            assert len({claim.kind for claim in claims}) == len(claims)
            counts.add(len(claims))
    assert counts == {2, 3, 4}


def test_warm_start_texts_depend_on_the_seed(source: WorldSource):
    document = source.documents("warm_start")[0]
    texts = {source.explanation(document, len(document.text), seed) for seed in range(8)}
    assert len(texts) > 1


def test_splits_share_no_document(source: WorldSource):
    splits = {split: source.documents(split) for split in SIZES}
    assert {split: len(found) for split, found in splits.items()} == SIZES
    for one, other in combinations(splits.values(), 2):
        assert not {document.id for document in one} & {document.id for document in other}
        assert not {document.text for document in one} & {document.text for document in other}
    assert list(source.documents("test")) == list(source.documents("test"))
    assert isinstance(splits["test"][0], Document)


def test_a_larger_split_begins_with_the_smaller_one(source: WorldSource):
    more = WorldSource({"test": 120}).documents("test")
    assert list(more[:100]) == list(source.documents("test"))


def test_unknown_split_is_a_data_error(source: WorldSource):
    with pytest.raises(DataError, match=r"no split 'tests'.*data\.sizes\.tests=N"):
        source.documents("tests")


def test_that_nothing_is_known_is_true_until_the_first_fact_is_revealed() -> None:
    source = WorldSource({"test": 20})
    for document in source.documents("test"):
        revealed = next(end for end in range(len(document.text)) if source.facts(document.id, document.text[:end]))
        before = source.explanation(document, revealed - 1, 0)
        assert before == "Nothing is known yet." == source.full_description(document.id, document.text[: revealed - 1])
        for end, true in ((revealed - 1, True), (revealed, False)):
            (claim,) = source.claims(before, document.id, document.text[:end])
            assert (claim.kind, claim.true) == ("nothing", true)
        assert "Nothing" not in (source.explanation(document, revealed, 0) or "")
