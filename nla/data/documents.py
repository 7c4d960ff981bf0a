"""Prepared documents: tokenized once, with the positions to read, and collated into batches."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerBase

from nla.core.padding import padded
from nla.core.records import TokenBatch
from nla.data.positions import draw_positions, eligible_positions, keyed_seed
from nla.data.source import Document
from nla.data.warm_start import Context, WarmStartTexts
from nla.errors import DataError, ModelError

TOKENIZE_AT_ONCE = 512  # documents; bounds the offsets in memory


@dataclass(frozen=True, slots=True)
class Prepared:
    """A document's tokens up to its last position, and the character at which each position's context ends.

    `following`: the token after each position; -1 if the text ends there.
    """

    document: Document
    tokens: list[int]
    positions: list[int]
    ends: list[int]
    following: list[int]


@dataclass(frozen=True, slots=True)
class ReadingPlan:
    """Which positions of a document are read.

    Args:
        positions_per_document: positions of each document; one if the corpus explains whole texts and explanations are
            read.
        min_context: least number of ordinary tokens to the left of a position.
        max_tokens: tokens to which a document is cut.
        seed: positions depend only on it and on the document's id.
        early: share of the positions that are drawn from a document's first tokens alone (`draw_positions`).
    """

    positions_per_document: int
    min_context: int
    max_tokens: int
    seed: int
    early: float = field(default=0.0, repr=False)  # not in the fingerprint of runs without it


def prepare(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    plan: ReadingPlan,
    warm_start: WarmStartTexts | None = None,
) -> tuple[list[Prepared], Counter[str]]:
    """The readable documents, and the number of others by reason.

    With `warm_start`, documents that the corpus explains as a whole are read only at their last token, and those
    without explanation are left out. All documents kept have the same number of positions.

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
        chunk = documents[first : first + TOKENIZE_AT_ONCE]
        encoded = tokenizer(
            [document.text for document in chunk],
            truncation=True,
            max_length=plan.max_tokens,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        fields = ("input_ids", "offset_mapping", "special_tokens_mask")
        for document, tokens, offsets, added in zip(chunk, *(encoded[name] for name in fields), strict=True):
            special = [bool(flag) or token in specials for flag, token in zip(added, tokens)]
            positions = _choose(document, offsets, special, plan, warm_start)
            if isinstance(positions, str):
                skipped[positions] += 1
            else:
                ends = [offsets[position][1] for position in positions]
                after = [p + 1 if p + 1 < len(tokens) and not special[p + 1] else -1 for p in positions]
                following = [-1 if place < 0 else int(tokens[place]) for place in after]
                prepared.append(Prepared(document, list(tokens[: positions[-1] + 1]), positions, ends, following))
    return prepared, skipped


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of the tokens for structure, not text; inside a text they mark the turns of a chat."""
    added = {int(token) for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    return added | set(tokenizer.all_special_ids)


def _choose(
    document: Document,
    offsets: Sequence[tuple[int, int]],
    special: list[bool],
    plan: ReadingPlan,
    warm_start: WarmStartTexts | None,
) -> list[int] | str:
    """The positions, or the reason for having none."""
    eligible = eligible_positions(offsets, special, plan.min_context)
    if warm_start is not None and document.explanation is not None:
        last = [position for position in eligible[-1:] if offsets[position][1] == len(document.text)]
        return last or "too short or too long for its explanation"
    if len(eligible) < plan.positions_per_document:
        return "too few tokens"
    if warm_start is not None and warm_start.lacks(document, offsets[eligible[-1]][1]):
        return "no explanation"
    return draw_positions(eligible, plan.positions_per_document, plan.seed, document.id, plan.early)


def collate(
    rows: Sequence[tuple[Prepared, int]], pad_id: int, warm_start: WarmStartTexts | None = None, seed: int = 0
) -> TokenBatch:
    """One batch of (document, epoch) rows, right padded; with `warm_start`, each position with its text.

    The choice of the text depends on seed and epoch, so that a source with several can vary it. Positions without a
    text are left out. Raises DataError if no position is left.
    """
    tokens, mask = padded([item.tokens for item, _ in rows], pad_id)
    places: list[tuple[int, int, Context]] = []
    for index, (item, epoch) in enumerate(rows):
        for position, end in zip(item.positions, item.ends, strict=True):
            key = keyed_seed("explanation", seed, epoch, item.document.id, position)
            places.append((index, position, Context(item.document, end, key)))
    explanation: list[str] | None = None
    if warm_start is not None:
        texts = warm_start.texts([context for _, _, context in places])
        explained = [(place, text) for place, text in zip(places, texts, strict=True) if text is not None]
        places, explanation = [place for place, _ in explained], [text for _, text in explained]
    if not places:
        ids = ", ".join(item.document.id for item, _ in rows)
        raise DataError(f"no position of {ids} has an explanation: raise data.min_context, or leave them out")
    return TokenBatch(
        tokens=tokens,
        mask=mask,
        row=torch.tensor([index for index, _, _ in places]),
        position=torch.tensor([position for _, position, _ in places]),
        document=[context.document.root for _, _, context in places],
        text=[context.document.text[: context.end] for _, _, context in places],
        explanation=explanation,
    )
