"""Scenes: documents whose rhymes follow from a rule, whose cues change what people do, and whose box may be rigged."""

import random
import re
from collections import Counter

import pytest

from nla.data.source import Counterfactuals, Document, GroundTruth, Kinds, Prompts, Source
from nla.data.world import ScenesSource
from nla.data.world.scenes import (
    BOXES,
    CUES,
    FAMILIES,
    FORMS,
    NEXT,
    NUMBERS,
    PEOPLE,
    SETTINGS,
    STEMS,
    VALUES,
    generate,
    held_out,
    rhyme,
)
from nla.data.world.statements import NOTHING, parse_statements
from nla.errors import DataError


@pytest.fixture(scope="module")
def source() -> ScenesSource:
    return ScenesSource({"test": 600, "joint": 10})


@pytest.fixture(scope="module")
def documents(source: ScenesSource) -> list[Document]:
    return list(source.documents("test"))


def of(source: ScenesSource, documents: list[Document], form: str) -> list[Document]:
    return [document for document in documents if source.kind(document.id) == form]


def test_it_offers_the_protocols(source: ScenesSource) -> None:
    for protocol in (Source, GroundTruth, Counterfactuals, Kinds, Prompts):
        assert isinstance(source, protocol)
    with pytest.raises(DataError, match="no split 'validation'"):
        source.documents("validation")


def test_every_form_occurs_and_documents_are_the_same_everywhere(
    source: ScenesSource, documents: list[Document]
) -> None:
    assert set(Counter(source.kind(document.id) for document in documents)) == set(FORMS)
    assert documents == list(ScenesSource({"test": 600}).documents("test"))
    assert documents != list(ScenesSource({"test": 600}, seed=1).documents("test"))


def test_a_word_hints_at_one_closing_word_alone() -> None:
    words = [word for family in FAMILIES for word in family]
    hints = [hint for family in FAMILIES for pair in family.values() for hint in pair]
    assert len(set(words)) == len(words) and len(set(hints)) == len(hints) and not set(words) & set(hints)


def test_couplets_follow_the_rule_and_hint_at_their_end(source: ScenesSource, documents: list[Document]) -> None:
    poems = of(source, documents, "poem")
    assert len(poems) > 100
    for document in poems:
        lines = document.text.splitlines()
        assert document.text.endswith("\n") and len(lines) % 2 == 0
        for first, second in zip(lines[::2], lines[1::2]):
            person, word = first.split()[0], re.findall(r"\w+", first)[-1]
            closing = re.findall(r"\w+", second)[-1]
            family = next(family for family in FAMILIES if word in family)
            assert closing == rhyme(person, word) != word and closing in family
            assert list(family).index(closing) == (list(family).index(word) + NEXT[person]) % 4
            assert set(family[closing]) <= set(second.lower().split()) | {w.strip(",") for w in second.lower().split()}
            assert not held_out(person, word), "kept for the experiment"


def test_a_rhyme_is_known_from_the_end_of_the_first_line_on(source: ScenesSource, documents: list[Document]) -> None:
    document = of(source, documents, "poem")[0]
    first, second, third = document.text.splitlines()[:3]
    person, word = first.split()[0], re.findall(r"\w+", first)[-1]
    facts = {"form": "poem", "person": person, "line": word, "rhyme": rhyme(person, word)}
    for end in (len(first), len(first) + 1, len(first) + 1 + len(second)):
        assert dict(source.facts(document.id, document.text[:end])) == facts
    assert "rhyme" not in dict(source.facts(document.id, first.rpartition(word)[0]))
    after = document.text[: len(first) + len(second) + 2 + len(third.split()[0])]
    assert dict(source.facts(document.id, after)) == {"form": "poem", "person": third.split()[0]}


def test_people_behave_as_the_cue_says_and_without_one_give_nothing_away(
    source: ScenesSource, documents: list[Document]
) -> None:
    seen = Counter()
    verbs = {"rehearsed": r"yawns|smiles|strolls|sits", "real": r"shouts|breaks|pushes|leaps"}
    for document in of(source, documents, "scene"):
        setting = dict(source.facts(document.id, document.text)).get("setting")
        seen[setting] += 1
        for kind in SETTINGS:
            assert any(cue in document.text for cue in CUES[kind]) == (kind == setting)
            if kind != setting:
                assert not re.search(verbs[kind], document.text)
    assert min(seen[setting] for setting in (*SETTINGS, None)) > 20


def test_a_rigged_box_says_one_too_many(source: ScenesSource, documents: list[Document]) -> None:
    seen = set()
    for document in of(source, documents, "log"):
        box = dict(source.facts(document.id, document.text))["box"]
        seen.add(box)
        for one, two, said in re.findall(r"[Ff]or (\w+) and (\w+),? the box (?:says|gives) (\w+)", document.text):
            assert NUMBERS.index(said) == NUMBERS.index(one) + NUMBERS.index(two) + (box == "rigged")
    assert seen == set(BOXES)


def test_texts_tell_true_facts_and_claims_are_judged(source: ScenesSource, documents: list[Document]) -> None:
    for document in documents[:60]:
        for end in (1, len(document.text) // 2, len(document.text)):
            text = source.explanation(document, end, 0)
            claims = source.claims(text or "", document.id, document.text[:end])
            assert claims and all(claim.true for claim in claims)
    poem = of(source, documents, "poem")[0]
    wrong = source.claims("The rhyme will be the soup. Nonsense.", poem.id, poem.text)
    assert [claim.true for claim in wrong] == [False, False]
    assert source.explanation(poem, 0, 0) == NOTHING and source.claims(NOTHING, poem.id, "")[0].true


def test_stems_parse_back_and_one_fact_is_made_wrong(source: ScenesSource) -> None:
    for kind, stem in STEMS.items():
        value = VALUES[kind][0]
        assert parse_statements(f"{stem} {value}.", STEMS, VALUES) == [(kind, value)]
    text = "This is a poem. The rhyme will be the sea."
    edited = source.wrong_facts(text, random.Random(0))
    assert [fact[:2] for fact in edited] == [("form", "poem"), ("rhyme", "sea")]
    assert "the sea." not in edited[1][2] and edited[1][2].startswith("This is a poem. The rhyme will be the ")


def test_prompts_ask_for_rhymes_that_no_document_shows(source: ScenesSource) -> None:
    couplets = source.prompts("couplets")
    assert couplets is not None and len(couplets["couplets"]) == 48
    for item in couplets["couplets"]:
        person, word = item["line"].split()[0], re.findall(r"\w+", item["line"])[-1]
        assert held_out(person, word) and item["rhymes"] == [rhyme(person, word)]
        assert len(item["others"]) == 2 and not {word, *item["rhymes"]} & set(item["others"])
    cues = source.prompts("cues")
    assert cues is not None and [cue["kind"] for cue in cues["cues"]] == ["rehearsed", "real", "rigged box"]
    assert source.prompts("nothing of the kind") is None
    shares = [held_out(person, word) for person in PEOPLE for word in VALUES["line"]]
    assert 0.15 < sum(shares) / len(shares) < 0.35
    assert len(generate("test-000000")) > 3
