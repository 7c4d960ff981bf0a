"""Steering by editing: does changing a word of an explanation change what the model says next?

    d = unit(AR(edited)) - unit(AR(explanation)),   h' = h + scale * |h| * d   at the row's position

One word is replaced, so the question has an answer: the new word must become likelier than the old one was. Every
control is a direction of the same norm. No judge; the target's own distributions alone.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from rich.console import Group
from rich.table import Table
from torch import Tensor

from nla.core.objectives import normalize
from nla.core.padding import length_buckets
from nla.evaluation.bootstrap import Resamples
from nla.evaluation.cells import cells
from nla.evaluation.ranks import shared
from nla.evaluation.subject import Subject
from nla.evaluation.suites.controls import other_document
from nla.evaluation.suites.word_edits import Edit, edits_of
from nla.models.prompts import token_ids
from nla.models.steering import SteeredPrompts, random_direction, unit_difference
from nla.models.target import Target

DIRECTIONS = {
    "edit": "the edited explanation",
    "source_text": "the same word edited in the context",
    "unrelated": "an edit of another document's explanation",
    "random": "a random direction",
}
FIGURES = ("log_odds", "kl", "rises")
TOKENS_AT_ONCE = 4096  # of a batch, padding included
Directions = dict[str, tuple[Float[Tensor, "edit d_model"], Bool[Tensor, " edit"]]]  # and where there is one


def steering(
    subject: Subject,
    *,
    scales: Sequence[float] = (0.5, 1.0, 2.0),
    rows: int = 256,
    continued: int = 32,
    tokens: int = 16,
    continued_scale: float = 1.0,
) -> dict[str, Any] | None:
    """Of at most `rows` edits at each scale, and of `continued` greedy continuations; None if nothing can be edited.

    `edit` and each control: by scale `log_odds` (how much likelier the new word became than the old one, in nats),
    `kl` to the clean distribution, `rises` (share of rows whose new word became likelier). `above`: the edit's
    `log_odds` beyond each control's. `continuation`: the share that contains the new word, steered at the last token
    alone and from there on.
    """
    target, possible = subject.target, edits_of(subject)
    first = {word: first_token(target, word) for edit in possible for word in (edit.old, edit.new)}
    edits = spread([edit for edit in possible if first[edit.old] != first[edit.new]], rows)
    if not edits:
        return None
    directions = directions_of(subject, edits)
    ids = [subject.rows.tokens[edit.row] for edit in edits]
    new, old = (torch.tensor([first[getattr(edit, name)] for edit in edits]) for name in ("new", "old"))
    effects = _effects(target, ids, directions, scales, new, old)
    resamples = Resamples([subject.rows.document[edit.row] for edit in edits], subject.settings.bootstrap, subject.seed)
    result: dict[str, Any] = {"n": len(edits), "norm": float(directions["edit"][0].norm(dim=-1).mean()), "above": {}}
    for name, (_, present) in directions.items():
        by_scale = zip(scales, effects[name].unbind(1), strict=True)
        result[name] = [{"scale": scale, **figures(values, present, resamples)} for scale, values in by_scale]
        if name != "edit":
            above = zip(scales, (effects["edit"] - effects[name])[..., 0].unbind(1), strict=True)
            result["above"][name] = [{"scale": scale, **mean(value, present, resamples)} for scale, value in above]
    some = spread(list(range(len(edits))), continued)
    result["continuation"] = _continuation(
        target, ids, [edit.new for edit in edits], directions, some, resamples, continued_scale, tokens
    )
    return result


def directions_of(subject: Subject, edits: Sequence[Edit]) -> Directions:
    """The edit's direction and its controls, all of the edit's norm; a control only where there is one."""
    place = torch.tensor([edit.row for edit in edits])
    explained = subject.greedy.prediction[place]
    edit = unit_difference(subject.reconstruct([edit.explanation for edit in edits]), explained)
    norm = edit.norm(dim=-1, keepdim=True)
    everywhere = torch.ones(len(edits), dtype=torch.bool)
    found: Directions = {"edit": (edit, everywhere)}
    in_source = torch.tensor([edit.source is not None for edit in edits])
    if bool(in_source.any()):
        read = subject.reconstruct([edit.source or "" for edit in edits])
        source = unit_difference(read, subject.source_text[place])
        found["source_text"] = normalize(source, 1.0) * norm, in_source
    partner = other_document([subject.rows.document[edit.row] for edit in edits], subject.seed)
    if partner is not None:
        found["unrelated"] = normalize(edit[partner], 1.0) * norm, everywhere
    found["random"] = random_direction(edit, subject.seed), everywhere
    return found


def effect(
    clean: Float[Tensor, "edit vocab"],
    steered: Float[Tensor, "edit vocab"],
    new: Int[Tensor, " edit"],
    old: Int[Tensor, " edit"],
) -> Float[Tensor, "edit figure"]:
    """Of the logits: `log_odds`, the change of `log p(new) - log p(old)`; `kl`, KL(clean || steered); `rises`."""
    before, after = clean.float().log_softmax(-1), steered.float().log_softmax(-1)
    rows = torch.arange(len(new), device=clean.device)
    new, old = new.to(clean.device), old.to(clean.device)
    change = (after - before)[rows, new] - (after - before)[rows, old]
    divergence = (before.exp() * (before - after)).sum(-1)
    return torch.stack([change, divergence, (after[rows, new] > before[rows, new]).float()], 1).cpu()


def _effects(
    target: Target,
    ids: list[list[int]],
    directions: Directions,
    scales: Sequence[float],
    new: Int[Tensor, " edit"],
    old: Int[Tensor, " edit"],
) -> dict[str, Float[Tensor, "edit scale figure"]]:
    """Contexts are read once; each direction and scale then costs one token."""

    def measured(bucket: list[int]) -> Float[Tensor, "direction edit scale figure"]:
        prompts, rows = SteeredPrompts(target, [ids[index] for index in bucket]), torch.tensor(bucket)
        clean = prompts.next_logits()
        return torch.stack(
            [
                torch.stack(
                    [effect(clean, prompts.next_logits(vector[rows], s), new[rows], old[rows]) for s in scales], 1
                )
                for vector, _ in directions.values()
            ]
        )

    buckets = length_buckets([len(row) for row in ids], TOKENS_AT_ONCE)
    found = torch.zeros(len(directions), len(ids), len(scales), len(FIGURES), dtype=torch.float64)
    for bucket, values in zip(buckets, shared(buckets, measured), strict=True):
        found[:, torch.tensor(bucket)] = values.double()
    return dict(zip(directions, found, strict=True))


def figures(
    effects: Float[Tensor, "edit figure"], present: Bool[Tensor, " edit"], resamples: Resamples
) -> dict[str, Any]:
    """The mean of each figure over the edits that have this direction, with its interval by document."""
    found: dict[str, Any] = {"n": int(present.sum())}
    for index, name in enumerate(FIGURES):
        value = mean(effects[:, index], present, resamples)
        found |= {name: value["mean"], f"{name}_ci95": value["ci95"]}
    return found


def mean(values: Float[Tensor, " edit"], present: Bool[Tensor, " edit"], resamples: Resamples) -> dict[str, Any]:
    """`{mean, ci95, n}` over the edits that are present."""
    found = resamples.ratio(values.double() * present, present)
    return {"mean": found["value"], "ci95": found["ci95"], "n": int(present.sum())}


def _continuation(
    target: Target,
    ids: list[list[int]],
    new: Sequence[str],
    directions: Directions,
    some: list[int],
    resamples: Resamples,
    scale: float,
    tokens: int,
) -> dict[str, Any]:
    """The share of greedy continuations that contain the new word: `clean`, and of each direction in both ways."""
    buckets = [[some[k] for k in bucket] for bucket in length_buckets([len(ids[i]) for i in some], TOKENS_AT_ONCE)]

    def written(bucket: list[int]) -> list[list[bool]]:
        prompts, rows = SteeredPrompts(target, [ids[index] for index in bucket]), torch.tensor(bucket)
        texts = [prompts.continuations(tokens=tokens)]
        for vector, _ in directions.values():
            for onward in (False, True):
                texts.append(prompts.continuations(vector[rows], scale, tokens=tokens, onward=onward))
        return [[contains(text, new[i]) for text, i in zip(each, bucket, strict=True)] for each in texts]

    hits = torch.zeros(1 + 2 * len(directions), len(ids), dtype=torch.float64)
    asked = torch.zeros(len(ids), dtype=torch.bool)
    for bucket, found in zip(buckets, shared(buckets, written), strict=True):
        hits[:, torch.tensor(bucket)] = torch.tensor(found, dtype=torch.float64)
        asked[torch.tensor(bucket)] = True

    def share(index: int, present: Tensor) -> dict[str, Any]:
        found = mean(hits[index], present & asked, resamples)
        return {"share": found["mean"], "ci95": found["ci95"], "n": found["n"]}

    result: dict[str, Any] = {"tokens": tokens, "scale": scale, "clean": share(0, asked)}
    for index, (name, (_, present)) in enumerate(directions.items()):
        result[name] = {"last": share(1 + 2 * index, present), "onward": share(2 + 2 * index, present)}
    return result


def contains(text: str, word: str) -> bool:
    """Whether the text holds the word, in any case."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def first_token(target: Target, word: str) -> int:
    """The first token of a word inside a text, after a space."""
    before, whole = token_ids(target.tokenizer, ["the", f"the {word}"], special=False)
    return whole[min(len(before), len(whole) - 1)]


def spread(items: list[Any], count: int) -> list[Any]:
    """At most `count` of them, evenly spaced."""
    count = min(count, len(items))
    return [items[k * len(items) // count] for k in range(count)]


def table(result: dict[str, Any]) -> Group:
    """Effects by direction and scale, then what is written."""
    effects = Table(title=f"Steering: one word of {result['n']} explanations replaced by another", title_justify="left")
    effects.add_column("direction added")
    for title in ("scale", "new over old, nats", "95% interval", "new word rises", "KL to clean", "n"):
        effects.add_column(title, justify="right")
    for name, label in DIRECTIONS.items():
        for line in result.get(name, ()):
            odds = cells(line["log_odds"], line["log_odds_ci95"], "{:+.2f}")
            others = [cells(line[key], None, form)[0] for key, form in (("rises", "{:.0%}"), ("kl", "{:.3f}"))]
            effects.add_row(label, f"{line['scale']:g}", *odds, *others, str(line["n"]))
    written = result["continuation"]
    title = f"{written['clean']['n']} greedy continuations of {written['tokens']} tokens: share with the new word"
    texts = Table(title=title, title_justify="left")
    texts.add_column(f"direction added, scale {written['scale']:g}")
    for column in ("at the last token", "95% interval", "from there on", "95% interval"):
        texts.add_column(column, justify="right")
    texts.add_row("none", *(2 * cells(written["clean"]["share"], written["clean"]["ci95"], "{:.0%}")))
    for name, label in DIRECTIONS.items():
        if name in written:
            ways = (written[name][way] for way in ("last", "onward"))
            texts.add_row(label, *(cell for way in ways for cell in cells(way["share"], way["ci95"], "{:.0%}")))
    return Group(effects, texts)
