"""The activations an evaluation is about: documents read once each, for all their positions."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nla.core.padding import length_buckets
from nla.data.documents import Prepared, ReadingPlan, collate, prepare, special_ids
from nla.data.positions import keyed_seed
from nla.data.source import Source
from nla.errors import DataError
from nla.evaluation.ranks import shared
from nla.models.prompts import pad_id
from nla.models.target import Target

TOKENS_AT_ONCE = 8192  # of a reading batch, padding included


@dataclass(frozen=True, slots=True)
class EvaluationData:
    """What to evaluate on: a source, and which positions of its documents are read."""

    source: Source
    plan: ReadingPlan


@dataclass(frozen=True, slots=True)
class EvaluatedRows:
    """One row per evaluated activation, a document's rows contiguous; everything on the CPU."""

    activation: Float[Tensor, "batch d_model"]  # raw
    document: list[str]  # what intervals are resampled by; chunks of one document share it
    document_id: list[str]  # what the source knows the text by
    position: Int[Tensor, " batch"]
    read: Int[Tensor, " batch"]  # ordinary tokens up to and including the one at `position`
    tokens: list[list[int]]  # the context's ids, up to and including the one at `position`
    following: Int[Tensor, " batch"]  # the token after it; -1 where the text ends
    text: list[str]  # context up to and including the token
    tail: list[str]  # the context's last tokens

    def __len__(self) -> int:
        return len(self.text)


def read_rows(
    target: Target, data: EvaluationData, split: str, documents: int | None, tail_tokens: int
) -> EvaluatedRows:
    """Activations of a split: of `documents` documents, chosen by a hash of their ids, or of all if None.

    Documents of similar length are read together; the rows are sorted by document.
    Raises DataError if fewer than two activations can be read: a variance needs two.
    """
    prepared = _prepared(target, data, split, documents)
    prepared.sort(key=lambda item: item.document.root)  # keeps a document's chunks together
    activation = torch.zeros(sum(len(item.positions) for item in prepared), target.d_model)
    first, total = [], 0
    for item in prepared:
        first.append(total)
        total += len(item.positions)
    for bucket, reading in _readings(target, prepared):
        activation[torch.tensor([first[i] + k for i in bucket for k in range(len(prepared[i].positions))])] = reading
    rows = [(item, token, end) for item in prepared for token, end in zip(item.positions, item.ends, strict=True)]
    special = special_ids(target.tokenizer)
    read = [sum(other not in special for other in item.tokens[: token + 1]) for item, token, _ in rows]
    tails = [item.tokens[max(0, token + 1 - tail_tokens) : token + 1] for item, token, _ in rows]
    return EvaluatedRows(
        activation=activation,
        document=[item.document.root for item, _, _ in rows],
        document_id=[item.document.id for item, _, _ in rows],
        position=torch.tensor([token for _, token, _ in rows]),
        read=torch.tensor(read),
        tokens=[item.tokens[: token + 1] for item, token, _ in rows],
        following=torch.tensor([token for item in prepared for token in item.following]),
        text=[item.document.text[:end] for item, _, end in rows],
        tail=[str(text) for text in target.tokenizer.batch_decode(tails, skip_special_tokens=True)],
    )


def read_layers(
    target: Target, data: EvaluationData, split: str, documents: int | None, layers: Sequence[int]
) -> tuple[Float[Tensor, "batch layer d_model"], list[str]]:
    """Activations of several blocks, chosen as `read_rows` chooses them, and the document of each. Raises DataError."""
    prepared = _prepared(target, data, split, documents)
    parts, roots = [], []
    for bucket, reading in _readings(target, prepared, layers):
        parts.append(reading)
        roots += [prepared[index].document.root for index in bucket for _ in prepared[index].positions]
    return torch.cat(parts), roots


def with_positions(data: EvaluationData, positions_per_document: int | None) -> EvaluationData:
    """The same data with another number of positions in each document; None: unchanged."""
    if positions_per_document is None:
        return data
    return EvaluationData(data.source, dataclasses.replace(data.plan, positions_per_document=positions_per_document))


def _prepared(target: Target, data: EvaluationData, split: str, documents: int | None) -> list[Prepared]:
    chosen = data.source.documents(split)
    if documents is not None:
        chosen = sorted(chosen, key=lambda document: keyed_seed("evaluation", document.id))[:documents]
    prepared, skipped = prepare(chosen, target.tokenizer, data.plan)
    if sum(len(item.positions) for item in prepared) < 2:
        raise DataError(
            f"split '{split}' gives fewer than two activations to evaluate on ({len(chosen)} documents, skipped: "
            f"{dict(skipped)}): give more or longer texts, or lower data.min_context or positions_per_document"
        )
    return prepared


def _readings(
    target: Target, prepared: list[Prepared], layers: Sequence[int] | None = None
) -> Iterator[tuple[list[int], Tensor]]:
    """Indices of documents that were read together, and their activations."""
    buckets = length_buckets([len(item.tokens) for item in prepared], TOKENS_AT_ONCE)
    readings = shared(buckets, lambda bucket: _read(target, [prepared[index] for index in bucket], layers))
    yield from zip(buckets, readings, strict=True)


def _read(target: Target, chosen: list[Prepared], layers: Sequence[int] | None) -> Tensor:
    device = target.device
    batch = collate([(item, 0) for item in chosen], pad_id(target.tokenizer)).to(device)
    return target(batch.tokens, batch.mask, batch.row, batch.position, layers).cpu()
