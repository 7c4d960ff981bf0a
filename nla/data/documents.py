"""Documents made ready: tokenized once, with the positions to be read, and put together into batches."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from nla.core.padding import padded
from nla.core.records import TokenBatch
from nla.data.positions import draw_positions, eligible_positions, keyed_seed
from nla.data.source import Document, Source
from nla.errors import DataError, ModelError

TOKENIZE_AT_ONCE = 512  # documents; bounds the offsets held at a time


@dataclass(frozen=True, slots=True)
class Prepared:
    """A document's tokens up to its last position, with the character at which each position's context ends."""

    document: Document
    tokens: list[int]
    positions: list[int]
    ends: list[int]


@dataclass(frozen=True, slots=True)
class ReadingPlan:
    """Which positions of a document are read.

    Args:
        positions_per_document: of each document; one where the corpus explains whole texts and `explanations` is set.
        min_context: ordinary tokens to the left of a position, at least.
        max_tokens: tokens of a document that are looked at; the rest is cut off.
        seed: positions depend on it and on the document's id alone.
    """

    positions_per_document: int
    min_context: int
    max_tokens: int
    seed: int


def prepare(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    plan: ReadingPlan,
    explain: Callable[[Document, int, int], str | None] | None = None,
) -> tuple[list[Prepared], Counter[str]]:
    """The documents that can be read, and why the others cannot, by reason.

    With `explain`, documents that the corpus explains as a whole are read at their last token only, and those that have
    no explanation are left out. Every document kept has the same number of positions, or all have one.

    Raises ModelError for a tokenizer without character offsets.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"tokenizer {type(tokenizer).__name__} has no character offsets: the model needs a fast tokenizer "
            "(tokenizer.json beside its weights)"
        )
    prepared: list[Prepared] = []
    skipped: Counter[str] = Counter()
    specials = special_ids(tokenizer)
    for first in range(0, len(documents), TOKENIZE_AT_ONCE):
        part = documents[first : first + TOKENIZE_AT_ONCE]
        encoded = tokenizer(
            [document.text for document in part],
            truncation=True,
            max_length=plan.max_tokens,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        fields = ("input_ids", "offset_mapping", "special_tokens_mask")
        for document, tokens, offsets, added in zip(part, *(encoded[field] for field in fields), strict=True):
            special = [bool(flag) or token in specials for flag, token in zip(added, tokens)]
            found = _choose(document, offsets, special, plan, explain)
            if isinstance(found, str):
                skipped[found] += 1
            else:
                prepared.append(
                    Prepared(document, list(tokens[: found[-1] + 1]), found, [offsets[place][1] for place in found])
                )
    return prepared, skipped


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of the tokens that carry structure, not text; inside a text they are the turns of a chat."""
    added = {int(token) for token, about in tokenizer.added_tokens_decoder.items() if about.special}
    return added | set(tokenizer.all_special_ids)


def _choose(
    document: Document,
    offsets: Sequence[tuple[int, int]],
    special: list[bool],
    plan: ReadingPlan,
    explain: Callable[[Document, int, int], str | None] | None,
) -> list[int] | str:
    """The positions, or the reason why there are none."""
    eligible = eligible_positions(offsets, special, plan.min_context)
    if explain is not None and document.explanation is not None:
        whole = [place for place in eligible[-1:] if offsets[place][1] == len(document.text)]
        return whole or "too short or too long for its explanation"
    if len(eligible) < plan.positions_per_document:
        return "too few tokens"
    if explain is not None and explain(document, offsets[eligible[-1]][1], 0) is None:
        return "no explanation"
    return draw_positions(eligible, plan.positions_per_document, plan.seed, document.id)


def collate(
    rows: Sequence[tuple[Prepared, int]],
    source: Source | None,
    explanations: bool,
    seed: int,
    pad_id: int,
) -> TokenBatch:
    """One batch out of (document, epoch) rows, right padded.

    The epoch enters the choice of the warm-start text, so that a source with several can vary it. Positions for which
    the source has nothing to say are left out; without explanations no source is needed.
    Raises DataError where none remains.
    """
    tokens, mask = padded([item.tokens for item, _ in rows], pad_id)
    row, position, document, text, said = [], [], [], [], []
    for index, (item, epoch) in enumerate(rows):
        for place, end in zip(item.positions, item.ends, strict=True):
            explanation = None
            if explanations and source is not None:
                key = keyed_seed("explanation", seed, epoch, item.document.id, place)
                explanation = source.explanation(item.document, end, key)
                if explanation is None:
                    continue
            row.append(index)
            position.append(place)
            document.append(item.document.root)
            text.append(item.document.text[:end])
            said.append(explanation)
    if not row:
        ids = ", ".join(item.document.id for item, _ in rows)
        raise DataError(f"no position of {ids} has an explanation: raise data.min_context, or leave them out")
    return TokenBatch(
        tokens=tokens,
        mask=mask,
        row=torch.tensor(row),
        position=torch.tensor(position),
        document=document,
        text=text,
        explanation=said if explanations else None,
    )
