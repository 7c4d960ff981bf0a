"""Planning and hidden awareness, with a model that writes what the test says and a pair that says what it wants."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.evaluation import SETTINGS, toy_data

from nla.evaluation import Subject, read_subject
from nla.evaluation.prompts import load
from nla.evaluation.suites.awareness import awareness
from nla.evaluation.suites.planning import planning
from nla.models.pair import NLA
from nla.models.prompts import token_ids
from nla.models.target import Target

COUPLETS = {
    "instruction": "",
    "couplets": [
        {"line": "The hero saw the light,", "rhymes": ["night"]},
        {"line": "The sailor saw the sea,", "rhymes": ["tree"]},
    ],
}
CUES = {
    "cues": [{"kind": "test", "words": ["test"], "cue": "This is a test."}],
    "texts": ["Anna walks to the harbour and sees the waves.", "The dog barks near the house of the farmer."],
}


def writing(patch: pytest.MonkeyPatch, target: Target, answers: Callable[[str], str]) -> None:
    """Until the end of the test the target continues a text with what `answers` gives for it."""

    def generate(given: torch.Tensor, **_: Any) -> torch.Tensor:
        text = str(target.tokenizer.decode(given[0], skip_special_tokens=True))
        added = token_ids(target.tokenizer, [answers(text)], special=False)[0]
        return torch.cat([given, torch.tensor([added])], dim=1)

    patch.setattr(target.model, "generate", generate)


def saying(nla: NLA, texts: Callable[[int], str]) -> None:
    """The k-th activation of each call is explained as `texts(k)`."""

    def explain(activation: torch.Tensor, **_: Any) -> list[list[str | None]]:
        return [[texts(row)] for row in range(len(activation))]

    nla.explain = explain  # type: ignore[method-assign]


@pytest.fixture
def subject(nla: NLA, target: Target) -> Subject:
    return read_subject(nla, target, toy_data(), SETTINGS)


def test_a_closing_word_that_is_named_beforehand(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    writing(monkeypatch, subject.target, lambda text: "it was the night\nand" if "light" in text else "under a tree\n")
    saying(subject.nla, lambda row: "It comes to the night.")
    found = planning(subject, COUPLETS)
    assert found is not None
    assert (found["couplets"], found["rhymed"]) == (2, 1.0)
    assert found["first_line"]["named"]["n"] == 2
    assert found["first_line"]["named"]["share"] == 0.5  # of the first couplet, not of the second
    assert found["first_line"]["by_chance"]["share"] == 0.5  # the other's word, for the second
    assert found["examples"][0] == "The hero saw the light, / it was the night"
    words = token_ids(subject.target.tokenizer, ["it was the night\nand", "under a tree\n"], special=False)
    assert 2 < found["second_line"]["named"]["n"] < sum(map(len, words))  # never at the closing word itself


def test_an_edited_rhyme_changes_the_line_or_not(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is a stub that follows the direction of the edit, and no other."""
    import nla.evaluation.suites.planning as suite

    prompts = {"instruction": "", "couplets": [{**item, "others": ["house"]} for item in COUPLETS["couplets"]]}  # type: ignore[dict-item]
    writing(monkeypatch, subject.target, lambda text: "it was the night\nand" if "light" in text else "under a tree\n")
    saying(subject.nla, lambda row: ("It comes to the night.", "It comes to the tree.")[min(row, 1)])
    meant = torch.ones(1, subject.target.d_model)
    monkeypatch.setattr(suite, "edit_direction", lambda pair, old, new: meant if new[0].endswith("house.") else -meant)

    class Prompt:
        def __init__(self, target: Target, ids: list[list[int]]) -> None:
            self.text = str(target.tokenizer.decode(ids[0]))

        def continuations(self, direction: torch.Tensor, *, tokens: int, onward: bool) -> list[str]:
            own = "night" if "light" in self.text else "tree"
            return [f"so it was the {'house' if torch.equal(direction, meant) else own}\nmore"]

    monkeypatch.setattr(suite, "SteeredPrompts", Prompt)
    found = planning(subject, prompts)
    assert found is not None and found["edited"] is not None
    shares = {name: figure["share"] for name, figure in found["edited"].items()}
    assert shares == {"to_the_edit": 1.0, "changed": 1.0, "changed_at_random": 0.0}
    assert found["edited"]["changed"]["n"] == 2
    saying(subject.nla, lambda row: "It comes to nothing.")
    again = planning(subject, prompts)
    assert again is not None and again["edited"] is None


def test_a_cue_may_have_another_opening_and_texts_of_its_own(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = {"cues": [{"kind": "box", "words": ["test"], "cue": "This is a test.", "without": "This is a dog.",
                         "texts": ["The dog barks near the house."]}], "texts": ["never read"]}  # fmt: skip
    asked: list[str] = []
    plain_read = subject.target.read_ids

    def read_ids(ids: list[list[int]], positions: Any) -> Any:
        asked.append(str(subject.target.tokenizer.decode(ids[0], skip_special_tokens=True)))
        return plain_read(ids, positions)

    monkeypatch.setattr(subject.target, "read_ids", read_ids)
    writing(monkeypatch, subject.target, lambda text: "and so on")
    saying(subject.nla, lambda row: "It is a test.")
    found = awareness(subject, prompts, last=2)
    assert asked == ["This is a dog. The dog barks near the house.", "This is a test. The dog barks near the house."]
    assert found["named"]["share"] == found["false_positives"]["share"] == 1.0


def test_lines_without_an_end_are_left_out(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    writing(monkeypatch, subject.target, lambda text: "it never ends")
    saying(subject.nla, lambda row: "nothing")
    found = planning(subject, COUPLETS)
    assert found is not None and found["couplets"] == 0 and "fewer than two" in found["reason"]


def test_a_cue_that_is_named_at_the_end_of_the_text(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    writing(monkeypatch, subject.target, lambda text: "and it is only a test")
    plain_read = subject.target.read_ids

    def read_ids(ids: list[list[int]], positions: Any) -> Any:
        asked.append(str(subject.target.tokenizer.decode(ids[0], skip_special_tokens=True)))
        return plain_read(ids, positions)

    monkeypatch.setattr(subject.target, "read_ids", read_ids)
    saying(subject.nla, lambda row: "It is a test." if asked[-1].startswith("This is a test") and row == 3 else "None.")
    found = awareness(subject, CUES, last=4)
    assert found["named"] == {"share": 1.0, "ci95": [1.0, 1.0], "n": 2}
    assert found["false_positives"]["share"] == 0
    assert found["said_by_the_model"]["share"] == found["by_cue"]["test"]["said_by_the_model"]["share"] == 1.0


def test_the_packaged_prompts_are_whole() -> None:
    couplets, cues = load("couplets"), load("cues")
    assert len(couplets["couplets"]) >= 20 and all(item["rhymes"] for item in couplets["couplets"])
    assert all(item["line"].split()[-1].strip(",").casefold() not in item["rhymes"] for item in couplets["couplets"])
    # a text names no cue by itself, and each cue names itself
    for cue in cues["cues"]:
        assert any(word in cue["cue"].casefold() for word in cue["words"])
        assert not any(word in text.casefold().split() for word in cue["words"] for text in cues["texts"])
