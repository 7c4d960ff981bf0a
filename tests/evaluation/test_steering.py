"""Steering by editing, by hand: which word is edited, what the effect of a direction is, against what."""

import dataclasses
import json
import math
import random

import pytest
import torch
from rich.console import Console
from support.evaluation import PLAN, SETTINGS, ToySource
from support.models import MARKER, TEMPLATES
from torch import Tensor

from nla.core.objectives import normalize
from nla.core.records import Completions
from nla.evaluation import EvaluationData
from nla.evaluation.activations import read_rows
from nla.evaluation.bootstrap import Resamples
from nla.evaluation.subject import Subject, read_subject
from nla.evaluation.suites.steering import (
    contains,
    directions_of,
    effect,
    figures,
    first_token,
    spread,
    steering,
    table,
)
from nla.evaluation.suites.word_edits import Edit, edits_of, expected_places
from nla.models.pair import NLA
from nla.models.prompts import token_ids
from nla.models.steering import steered_logits
from nla.models.target import Target

KINDS = {"colour": ("brown", "lazy", "quick"), "animal": ("dog", "fox", "town")}
WORDS = [word for words in KINDS.values() for word in words]


class Source(ToySource):
    """Both facts near the beginning."""

    def _facts(self, document_id: str) -> tuple[str, str]:
        rng = random.Random(document_id)
        return rng.choice(KINDS["colour"]), rng.choice(KINDS["animal"])

    def _text(self, document_id: str) -> str:
        rng = random.Random(f"text {document_id}")
        end = " ".join(rng.choice(("over", "walks", "jumps", "the", "Tom")) for _ in range(rng.randint(4, 9)))
        return f"The {' '.join(self._facts(document_id))} {end}."


@pytest.fixture(scope="module")
def subject(tiny_folder: str) -> Subject:
    """Of the last block: a pair that tells all facts, and reads each word as the direction of its first token."""
    target = Target.from_pretrained(tiny_folder, 2)
    nla = NLA.from_target(tiny_folder, 2, TEMPLATES, MARKER)
    data = EvaluationData(Source(size=24), PLAN)
    rows = read_rows(target, data, "test", None, SETTINGS.source_tokens)
    texts = [Source().full_description(*row) or "nothing." for row in zip(rows.document_id, rows.text, strict=True)]
    memory, head = normalize(rows.activation, 1.0), target.model.get_output_embeddings().weight.detach()

    def sample(given: Tensor, *_: object, **__: object) -> Completions:
        nearest = (normalize(given, 1.0) @ memory.T).argmax(1).tolist()
        mask = torch.ones(len(nearest), 1, dtype=torch.bool)
        return Completions(torch.zeros(len(nearest), 1, dtype=torch.long), mask, [texts[k] for k in nearest])

    def reconstruct(given: list[str], batch_size: int = 64) -> Tensor:
        held = [[word for word in WORDS if contains(text, word)] for text in given]
        return torch.stack([sum((head[first_token(target, w)] for w in words), torch.ones(32)) for words in held])

    nla.verbalizer.sample = sample  # type: ignore[method-assign]
    nla.reconstruct = reconstruct  # type: ignore[method-assign]
    settings = dataclasses.replace(SETTINGS, samples=0, neighbour_documents=0)
    return read_subject(nla, target, data, settings)


def usable(subject: Subject) -> list[Edit]:
    """Those whose words the next-token distribution can tell apart."""
    return [e for e in edits_of(subject) if len({first_token(subject.target, word) for word in (e.old, e.new)}) == 2]


def test_an_edit_replaces_one_true_fact_by_another_value(subject: Subject) -> None:
    edits = edits_of(subject)
    assert len({edit.row for edit in edits}) == len(edits) > 8
    kinds = {word: kind for kind, words in KINDS.items() for word in words}
    for edit in edits:
        text, tail = subject.greedy.texts.explanation[edit.row] or "", subject.rows.tail[edit.row]
        assert edit.explanation == text.replace(edit.old, edit.new) != text
        assert kinds[edit.old] == kinds[edit.new] and edit.old != edit.new
        assert edit.source == (tail.replace(edit.old, edit.new) if contains(tail, edit.old) else None)
    assert edits == edits_of(subject)
    assert edits != edits_of(dataclasses.replace(subject, seed=1))


def test_of_a_description_of_the_target_the_first_expected_word_is_edited() -> None:
    text = (
        'It is about rain, town.\nAfter "the" comes surely ",", "cat" or "dog", as in "cat sat".\nIt just said "the".'
    )
    assert [(text[start:end], kind) for start, end, kind in expected_places(text)] == [("cat", "expected")]
    assert expected_places('Next comes perhaps "rain".') == [(20, 24, "expected")]
    assert expected_places('Next comes as in "rain falls".') == expected_places("It rains.") == []


def test_descriptions_of_the_target_are_edited_with_each_others_words(subject: Subject) -> None:
    first, second, third = (f'Next comes surely "{word}".' for word in ('dog" or "town', "fox", "xyzzy"))
    greedy, count = subject.greedy, len(subject.rows)
    texts = [*([first, second, third] * count)[: count - 1], None]
    variant = dataclasses.replace(greedy, texts=dataclasses.replace(greedy.texts, explanation=texts))
    edits = edits_of(dataclasses.replace(subject, variants={"greedy": variant}))
    assert {(edit.old, edit.new) for edit in edits} == {("dog", "fox"), ("fox", "dog")}  # no text has the word xyzzy
    assert {edit.explanation for edit in edits} == {first.replace("dog", "fox"), second.replace("fox", "dog")}


def test_the_effect_of_a_direction_by_hand() -> None:
    clean = torch.tensor([[0.5, 0.25, 0.25]]).log()
    steered = torch.tensor([[0.25, 0.5, 0.25]]).log()
    found = effect(clean, steered + 7, torch.tensor([1]), torch.tensor([0]))  # logits, not log-probabilities
    divergence = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert found.tolist()[0] == pytest.approx([2 * math.log(2), divergence, 1.0])
    assert effect(clean, clean, torch.tensor([1]), torch.tensor([0])).tolist() == [[0, 0, 0]]


def test_figures_are_means_over_those_that_have_the_direction() -> None:
    effects = torch.tensor([[1.0, 0.5, 1.0], [3.0, 0.0, 0.0], [100.0, 9.0, 1.0]])
    found = figures(effects, torch.tensor([True, True, False]), Resamples(["a", "b", "c"], 50, 0))
    assert (found["n"], found["log_odds"], found["kl"], found["rises"]) == (2, 2.0, 0.25, 0.5)
    assert found["log_odds_ci95"] == [1.0, 3.0]
    nothing = figures(effects, torch.tensor([False] * 3), Resamples(["a", "b", "c"], 50, 0))
    assert nothing["log_odds"] is None and nothing["log_odds_ci95"] is None and nothing["n"] == 0


def test_controls_have_the_norm_of_the_edit(subject: Subject) -> None:
    edits = usable(subject)
    directions = directions_of(subject, edits)
    assert set(directions) == {"edit", "source_text", "unrelated", "random"}
    norm = directions["edit"][0].norm(dim=1)
    for name, (vector, present) in directions.items():
        torch.testing.assert_close(vector[present].norm(dim=1), norm[present], msg=name)
    assert directions["source_text"][1].tolist() == [edit.source is not None for edit in edits]


def test_the_suite_measures_what_a_plain_forward_pass_gives(subject: Subject) -> None:
    result = steering(subject, scales=(1.0,), rows=6, continued=3, tokens=4)
    assert result is not None and result["n"] == 6
    target = subject.target
    edits = spread(usable(subject), 6)
    direction = directions_of(subject, edits)["edit"][0]
    changes = []
    for edit, vector in zip(edits, direction, strict=True):
        tokens = torch.tensor(token_ids(target.tokenizer, [subject.rows.text[edit.row]]))
        last = torch.tensor([tokens.shape[1] - 1])
        log_p = [
            steered_logits(target, tokens, last, vector[None], scale)[0, -1].log_softmax(-1) for scale in (0.0, 1.0)
        ]
        new, old = (first_token(target, word) for word in (edit.new, edit.old))
        changes.append(float((log_p[1] - log_p[0])[new] - (log_p[1] - log_p[0])[old]))
    assert result["edit"][0]["log_odds"] == pytest.approx(sum(changes) / 6, abs=1e-3)
    # the planted direction is that of the words' own logits
    assert result["edit"][0]["rises"] == 1 and result["edit"][0]["log_odds"] > 1
    assert result["edit"][0]["log_odds"] > result["random"][0]["log_odds"] + 0.5
    gap = result["edit"][0]["log_odds"] - result["random"][0]["log_odds"]
    assert result["above"]["random"][0]["mean"] == pytest.approx(gap)
    written = result["continuation"]
    assert (written["clean"]["n"], written["tokens"], written["edit"]["onward"]["n"]) == (3, 4, 3)
    assert written["edit"]["onward"]["share"] >= written["clean"]["share"]
    json.dumps(result)
    console = Console(record=True, width=120)
    console.print(table(result))
    assert "a random direction" in console.export_text()


def test_nothing_to_edit_is_no_result(subject: Subject) -> None:
    texts = dataclasses.replace(subject.greedy.texts, explanation=[None] * len(subject.rows))
    variant = dataclasses.replace(subject.greedy, texts=texts)
    assert steering(dataclasses.replace(subject, variants={"greedy": variant})) is None


def test_a_word_is_contained_whole_and_in_any_case() -> None:
    assert contains("A Cat sat", "cat") and not contains("concatenate", "cat")
    assert spread(list(range(10)), 4) == [0, 2, 5, 7] and spread([1], 4) == [1]
