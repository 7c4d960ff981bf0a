"""What the experiments on prompts share: the model's own continuation, words of a text, and shares by prompt."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nla.data.source import Prompts
from nla.evaluation.bootstrap import Resamples
from nla.evaluation.prompts import load
from nla.evaluation.subject import Subject
from nla.models.target import Target

WORD = re.compile(r"[^\W\d_]+")


@torch.no_grad()
def continued(target: Target, tokens: list[int], max_new_tokens: int) -> list[int]:
    """The target's greedy continuation of the tokens."""
    given = torch.tensor([tokens], device=target.device)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False}
    full = target.model.generate(given, attention_mask=torch.ones_like(given), **options)[0]  # pyright: ignore
    return full[len(tokens) :].tolist()


def prompt_set(subject: Subject, name: str) -> Mapping[str, Any]:
    """The source's own prompts of this name, if it has some; else the packaged ones."""
    source = subject.data.source
    own = source.prompts(name) if isinstance(source, Prompts) else None
    return load(name) if own is None else own


def words(text: str) -> set[str]:
    """The different words of a text, in lower case."""
    return {word.casefold() for word in WORD.findall(text)}


def shares(
    subject: Subject, hits: Sequence[Sequence[float]], prompt: Sequence[int], names: Sequence[str]
) -> dict[str, Any]:
    """`{share, ci95, n}` of each column of `hits` under its name; intervals by prompt."""
    resamples = Resamples([str(index) for index in prompt], subject.settings.bootstrap, subject.seed)
    columns = torch.tensor(hits, dtype=torch.float64).unbind(1)
    found = {
        name: resamples.ratio(column, torch.ones_like(column)) for name, column in zip(names, columns, strict=True)
    }
    return {name: {"share": share["value"], "ci95": share["ci95"], "n": len(hits)} for name, share in found.items()}
