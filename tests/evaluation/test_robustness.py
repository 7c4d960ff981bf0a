"""Edited explanations: a reader of facts keeps its FVE and minds a wrong fact; private codes are caught."""

import random
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.evaluation import PLAN, SETTINGS, ToySource, toy_data

from nla.core.records import Completions
from nla.data.source import Claim
from nla.data.teachers.target_claims import paraphrased_description, parse_description, wrong_descriptions
from nla.data.world import WorldSource
from nla.data.world.statements import NOTHING, STEMS, parse_statements
from nla.data.world.vocabulary import CONTENT, KINDS
from nla.data.world.wordings import EVALUATION, TRAINING
from nla.evaluation import EvaluationData, evaluate
from nla.evaluation.activations import EvaluatedRows, read_rows
from nla.evaluation.edits import first_half, sentence_order, word_order
from nla.models.pair import NLA
from nla.models.target import Target

ROBUST = replace(SETTINGS, suites=["robustness"], samples=0)
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
Read = Callable[[str], int | None]


class Rephrasing(ToySource):
    """Says `tens 4.` as `ten times 4.`, and can state another digit. What is said first is true."""

    def claims(self, explanation: str, document_id: str, text: str) -> list[Claim]:
        seen = self.seen.setdefault(text, explanation)
        return [Claim(*part.split()[:2], true=part in seen.split(".")) for part in explanation.split(".")[:2]]

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, str] = {}

    def paraphrase(self, explanation: str, rng: random.Random, *, training: bool = False) -> str:
        return explanation.replace("tens ", "ten times ").replace("ones ", "and then ")

    def wrong_facts(self, explanation: str, rng: random.Random) -> list[tuple[str, str, str]]:
        tens, ones = (part.split()[1].rstrip(".") for part in explanation.split(". "))
        return [
            ("tens", tens, explanation.replace(f"tens {tens}", f"tens {(int(tens) + 1) % 3}")),
            ("ones", ones, explanation.replace(f"ones {ones}", f"ones {(int(ones) + 1) % 10}")),
        ]


def pair_of(nla: NLA, rows: EvaluatedRows, write: Callable[[int], str], read: Read) -> None:
    """Row k is explained by `write(k)`; a text is given back as the activation of row `read(text)`, or as the mean."""
    memory, mean = rows.activation, rows.activation.mean(0)

    def sample(given: torch.Tensor, *_: object, **__: object) -> Completions:
        nearest = torch.cdist(given, memory).argmin(1).tolist()
        mask = torch.ones(len(nearest), 5, dtype=torch.bool)
        return Completions(torch.zeros(len(nearest), 5, dtype=torch.long), mask, [write(k) for k in nearest])

    def reconstruct(texts: list[str], batch_size: int = 64) -> torch.Tensor:
        found = [read(text) for text in texts]
        return torch.stack([mean if k is None or not 0 <= k < len(memory) else memory[k] for k in found])

    nla.verbalizer.sample = sample  # type: ignore[method-assign,assignment]
    nla.reconstruct = reconstruct  # type: ignore[method-assign,assignment]


def digits(text: str) -> dict[str, int]:
    """What a reader of facts understands, in whatever order it is said."""
    found = {}
    for part in text.replace("ten times", "tens").replace("and then", "ones").split("."):
        words = part.split()
        if len(words) == 2 and words[1].isdigit():
            found[words[0]] = int(words[1])
    return found


def of_facts(text: str) -> int | None:
    found = digits(text)
    return 10 * found["tens"] + found["ones"] if {"tens", "ones"} <= set(found) else None


@pytest.fixture
def rows(target: Target) -> EvaluatedRows:
    return read_rows(target, toy_data(), "test", None, 32)


def result(nla: NLA, target: Target, source: ToySource) -> dict[str, Any]:
    return evaluate(nla, target, EvaluationData(source, PLAN), ROBUST).metrics["robustness"]


def test_a_reader_of_facts_keeps_its_fve_and_minds_a_wrong_fact(nla: NLA, target: Target, rows: EvaluatedRows) -> None:
    pair_of(nla, rows, lambda k: f"tens {k // 10}. ones {k % 10}.", of_facts)
    found = result(nla, target, Rephrasing())
    for name in ("paraphrase", "sentence_order"):
        assert found["edits"][name]["fve"] == pytest.approx(1, abs=1e-6)
        assert found["edits"][name]["kept"] == {"value": pytest.approx(1), "ci95": [pytest.approx(1)] * 2}
        assert found["edits"][name]["changed"] == 1.0
    assert found["edits"]["first_half"]["fve"] < 0.1
    assert found["edits"]["without_quotes"]["reason"] == "the edit changes none of the texts"
    wrong = found["wrong_facts"]
    assert (wrong["value"], wrong["n"]) == (1.0, 2 * len(rows))
    assert {kind: part["value"] for kind, part in wrong["by_kind"].items()} == {"ones": 1.0, "tens": 1.0}
    assert found["flags"] == []


def test_a_code_in_the_order_of_sentences_is_caught(nla: NLA, target: Target, rows: EvaluatedRows) -> None:
    def by_order(text: str) -> int | None:
        numbers = [int(word) for word in text.replace(".", " ").split() if word.isdigit()]
        return 10 * numbers[0] + numbers[1] if len(numbers) == 2 else None

    pair_of(nla, rows, lambda k: f"tens {k // 10}. ones {k % 10}.", by_order)
    found = result(nla, target, Rephrasing())
    assert found["edits"]["sentence_order"]["kept"]["value"] < 0.8
    assert any("sentences in another order" in flag for flag in found["flags"])


def test_a_code_in_the_number_of_sentences_is_caught(nla: NLA, target: Target, rows: EvaluatedRows) -> None:
    """The facts stand in the text, and the reader does not read them."""
    pair_of(nla, rows, lambda k: f"tens {k // 10}. ones {k % 10}." + " so." * k, lambda text: text.count("so."))

    class Counting(Rephrasing):
        def wrong_facts(self, explanation: str, rng: random.Random) -> list[tuple[str, str, str]]:
            head, _, tail = explanation.partition(" so.")
            found = super().wrong_facts(head, rng)
            return [(kind, value, f"{edited} so.{tail}" if _ else edited) for kind, value, edited in found]

    found = result(nla, target, Counting())
    assert found["wrong_facts"]["value"] == 0
    assert any("a wrong fact raises the error in 0% of cases only" in flag for flag in found["flags"])


def test_a_scrambled_vocabulary_is_caught(nla: NLA, target: Target, rows: EvaluatedRows) -> None:
    """Each number is written as another word, which only this reader knows: no claim is true, no rewording is read."""
    code = {word: index for index, word in enumerate(sorted(NUMBERS))}
    spoken = {index: word for word, index in code.items()}
    written = [f"{spoken[k // 10]} {spoken[k % 10]} it is." for k in range(len(rows))]

    class Scrambled(ToySource):
        def paraphrase(self, explanation: str, rng: random.Random, *, training: bool = False) -> str:
            first, second, *_ = explanation.split()
            return f"{10 * NUMBERS.index(first) + NUMBERS.index(second)} is what it is."

    def read(text: str) -> int | None:
        words = text.split()
        return 10 * code[words[0]] + code[words[1]] if len(words) > 1 and set(words[:2]) <= set(code) else None

    pair_of(nla, rows, lambda k: written[k], read)
    metrics = evaluate(nla, target, EvaluationData(Scrambled(), PLAN), replace(ROBUST, suites=["robustness", "claims"]))
    assert metrics.metrics["fve"] == pytest.approx(1, abs=1e-6)
    assert any("in other words" in flag for flag in metrics.metrics["robustness"]["flags"])
    assert metrics.metrics["claims"]["true_share"] == 0


def test_edits_by_hand() -> None:
    rng = random.Random(0)
    assert sorted(sentence_order("A b. C d. E f.", rng).split(". ")) != ["A b", "C d", "E f."]
    assert sentence_order("Only one.", rng) == "Only one."
    assert sorted(word_order("a b c d", rng).split()) == ["a", "b", "c", "d"] != word_order("a b c d", rng).split()
    assert first_half("one two,  three four", rng) == "one two,"
    assert first_half("one two three", rng) == "one two"


def test_the_words_of_teacher_self() -> None:
    text = 'After "by" comes perhaps "the", "a" or "laws".\nIt just said "governed by".'
    assert paraphrased_description(text, random.Random(0)) == (
        'The word "by" is followed by perhaps "the", "a" or "laws".\n"governed by" were the words read last.'
    )
    trained = {paraphrased_description(text, random.Random(seed), training=True) for seed in range(20)}
    assert len(trained) == 4 and 'Next, after "by": perhaps "the", "a" or "laws".\nLast read: "governed by".' in trained
    assert paraphrased_description("Something else.", random.Random(0), training=True) == "Something else."
    others = ['After "sea" comes surely "and" or "is".\nIt just said "his sea".']
    edited = wrong_descriptions(text, others, random.Random(0))
    assert [kind for kind, _, _ in edited] == ["last", "expected", "expected", "expected", "read"]
    assert [value for _, value, _ in edited] == ["by", "the", "a", "laws", "governed"]
    assert edited[0][2] == 'After "sea" comes perhaps "the", "a" or "laws".\nIt just said "governed sea".'
    for kind, _, changed in edited:
        apart = set(parse_description(changed)) ^ set(parse_description(text))
        assert {other for other, _ in apart} == {kind} and len(apart) == 2


def test_the_world_says_the_same_in_other_words_and_one_fact_otherwise() -> None:
    source = WorldSource({"test": 1})
    text = "The hero is Anna. The weather is stormy. Nonsense here."
    said = source.paraphrase(text, random.Random(0))
    assert "Anna" in said and "tormy" in said and "Nonsense here." in said
    assert "The hero is Anna." not in said and "The weather is stormy." not in said
    trained = source.paraphrase(text, random.Random(0), training=True)
    assert "Anna" in trained and "tormy" in trained and "Nonsense here." in trained and trained not in (said, text)
    assert source.paraphrase(NOTHING, random.Random(0)) == NOTHING
    edited = source.wrong_facts(text, random.Random(0))
    assert [fact[:2] for fact in edited] == [("hero", "Anna"), ("weather", "stormy")]
    assert "Anna" not in edited[0][2] and "The weather is stormy." in edited[0][2] and "stormy" not in edited[1][2]


def test_other_wordings_hold_the_value_and_nothing_that_training_or_the_facts_have() -> None:
    values = {value for known in KINDS.values() for value in known}
    evidence = {word for known in CONTENT.values() for value in known for word in value.words}
    assert set(EVALUATION) == set(TRAINING) == set(KINDS)
    for kind in KINDS:
        for wording in (*EVALUATION[kind], *TRAINING[kind]):
            assert wording.count("{}") == 1 and wording.endswith(".") and wording.count(".") == 1
            assert not any(wording.startswith(stem) for stem in STEMS.values())
            assert not set(wording.replace(".", "").split()) & (values | evidence)
            assert parse_statements(wording.format(KINDS[kind][0]))[0][0] is None


def test_each_evaluation_wording_has_a_word_that_training_never_has() -> None:
    trained = {word for known in (*TRAINING.values(), STEMS.values()) for text in known for word in words_of(text)}
    for wordings in EVALUATION.values():
        for wording in wordings:
            assert set(words_of(wording)) - trained, wording


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())
