"""The reconstructor learns from some texts in other words; the verbalizer's own texts stay what they are."""

import random
from typing import Any

import pytest
import torch
from support.stages import TEXTS, completions_of, fit, joint, options, reconstructor

from nla.core.records import Completions
from nla.errors import ConfigError
from nla.models.pair import NLA
from nla.models.target import Target
from nla.training.reworded import reworded
from nla.training.stages import JointStage


class Loud:
    """Its other words are capitals, with a number that the choice gives."""

    def paraphrase(self, explanation: str, rng: random.Random, *, training: bool = False) -> str:
        assert training
        return f"{explanation.upper()} {rng.randrange(10**6)}"


def listening(monkeypatch: pytest.MonkeyPatch, stage: Any, source: object) -> list[list[str]]:
    """What the reconstructor reads in training, with this source."""
    monkeypatch.setattr(type(stage), "source", source)
    heard: list[list[str]] = []
    tokenize = stage.nla.reconstructor.tokenize

    def listen(texts: list[str]) -> Any:
        if torch.is_grad_enabled():
            heard.append(list(texts))
        return tokenize(texts)

    monkeypatch.setattr(stage.nla.reconstructor, "tokenize", listen)
    return heard


def test_a_share_of_the_given_texts_is_read_in_other_words(
    monkeypatch: pytest.MonkeyPatch, nla: NLA, target: Target
) -> None:
    stage = reconstructor(nla, target, **options(40), reworded=0.25)
    heard = listening(monkeypatch, stage, Loud())
    fit(stage, 40)
    changed = [text for texts in heard for text, given in zip(texts, TEXTS) if text != given]
    assert len(heard) == 40 and 20 <= len(changed) <= 60  # of 160
    assert all(text.startswith(tuple(given.upper() for given in TEXTS)) for text in changed)
    assert len(set(changed)) == len(changed), "another choice of words at each step"


def test_without_a_share_nothing_is_asked(monkeypatch: pytest.MonkeyPatch, nla: NLA, target: Target) -> None:
    stage = reconstructor(nla, target, **options(2))
    heard = listening(monkeypatch, stage, None)
    fit(stage, 2)
    assert heard == [TEXTS[:4]] * 2


def test_samples_of_one_activation_change_together(monkeypatch: pytest.MonkeyPatch, nla: NLA, target: Target) -> None:
    """So none of a group has an advantage; what was sampled, and is judged by its log-probs, does not change."""
    stage = joint(nla, target, reworded=0.5)
    heard = listening(monkeypatch, stage, Loud())
    said: list[str | None] = [f"{TEXTS[row]} {sample}" if sample else None for row in range(4) for sample in range(4)]
    completions = completions_of(nla, said)
    monkeypatch.setattr(JointStage, "sample", lambda *_, **__: completions)
    fit(stage, 1, limit_val_batches=0)
    groups = [heard[0][start : start + 4] for start in range(0, 16, 4)]
    changed = [sum(text not in [*said, ""] for text in group) for group in groups]
    assert sorted(set(changed)) == [0, 4]
    assert isinstance(completions, Completions) and completions.explanation == said


def test_choices_depend_on_keys_and_texts_alone() -> None:
    texts, keys = [f"Text {n}." for n in range(50)], [str(n) for n in range(50)]
    whole = reworded(texts, keys, 0.5, Loud())
    assert reworded(texts[20:], keys[20:], 0.5, Loud()) == whole[20:]
    assert 15 < sum(one != other for one, other in zip(whole, texts)) < 35
    assert reworded(texts, keys, 1.0, Loud()) != texts and reworded(texts, keys, 0.0, Loud()) == texts


def test_a_source_without_other_words_and_a_wrong_share_are_named(
    monkeypatch: pytest.MonkeyPatch, nla: NLA, target: Target
) -> None:
    stage = reconstructor(nla, target, **options(1), reworded=0.5)
    listening(monkeypatch, stage, object())
    with pytest.raises(ConfigError, match=r"object knows no other words.*stage\.reconstructor\.reworded=0"):
        fit(stage, 1)
    for make, name in ((reconstructor, "reconstructor"), (joint, "joint")):
        with pytest.raises(ConfigError, match=rf"stage\.{name}\.reworded=1\.5: must be 0 \(none\) to 1"):
            make(nla, target, **({"reworded": 1.5} | (options(1) if make is reconstructor else {})))
