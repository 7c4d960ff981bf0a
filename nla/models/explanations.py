"""The explanation as text: its format in an answer, parsing, forbidden strings, and shortened versions."""

import re
from collections.abc import Collection, Sequence

from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nla.models.prompts import EXPLANATION_SLOT, token_ids

OPEN, CLOSE = "<explanation>", "</explanation>"
LONGEST = 5000  # characters of an explanation: long tokens could carry more past the token cap, unread by any person

# Double quotes, guillemets, backticks: to the closing mark, or to the end if it is missing. Single quotes only as a
# pair around words, since a lone one is an apostrophe.
QUOTED = re.compile(
    r'"[^"]*(?:"|$)|“[^”]*(?:”|$)|«[^»]*(?:»|$)|`[^`]*(?:`|$)'
    r"|(?<!\w)'(?:[^'\n]|(?<=\w)'(?=\w))+'(?!\w)|‘(?:[^‘’]|(?<=\w)’(?=\w))+’"
)
SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|\n+")


def parse_explanation(text: str, forbidden: Sequence[str] = ()) -> str | None:
    """The text between the one pair of explanation tags, stripped; None unless there is exactly one, not empty.

    Also None for more than `LONGEST` characters.

    `forbidden`: strings that must not occur inside (the marker, the reconstructor's suffix, special tokens), so that an
    answer cannot close the reconstructor's prompt early.
    """
    if text.count(OPEN) != 1 or text.count(CLOSE) != 1:
        return None
    inner, closed, _ = text.partition(OPEN)[2].partition(CLOSE)
    inner = inner.strip()
    if not closed or not 0 < len(inner) <= LONGEST or any(word in inner for word in forbidden):
        return None
    return inner


def parse_completions(
    tokenizer: PreTrainedTokenizerBase,
    tokens: Int[Tensor, "sample time"],
    mask: Bool[Tensor, "sample time"],
    stop_ids: Collection[int],
    forbidden: Sequence[str],
) -> list[str | None]:
    """The explanation of each completion; None if it is malformed or was cut off before a stop token."""
    lengths = mask.sum(1).tolist()
    rows = [row[:length] for row, length in zip(tokens.tolist(), lengths, strict=True)]
    ended = [bool(row) and row[-1] in stop_ids for row in rows]
    texts = tokenizer.batch_decode(
        [row[:-1] for row in rows], skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return [parse_explanation(str(text), forbidden) if done else None for text, done in zip(texts, ended, strict=True)]


def format_response(text: str) -> str:
    """The answer that carries an explanation."""
    return f"{OPEN}{text.strip()}{CLOSE}"


def forbidden_in_explanations(
    tokenizer: PreTrainedTokenizerBase, marker: str, reconstructor_template: str | None = None
) -> tuple[str, ...]:
    """Strings that make an explanation malformed: the marker, special tokens, the reconstructor's suffix."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= {str(token) for token in tokenizer.all_special_tokens}
    words = [marker, *sorted(special - {OPEN, CLOSE})]
    if reconstructor_template is not None:
        after = reconstructor_template.split(EXPLANATION_SLOT)[1].strip()
        closing = after[: after.index(">") + 1] if after.startswith("<") and ">" in after else after
        words.append(closing)
    return tuple(word for word in words if word)


def without_quotes(text: str) -> str:
    """The text without quotations; runs of white space become one space."""
    return " ".join(QUOTED.sub(" ", text).split())


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Characters of each sentence: the text is split after . ! ? ; and at line breaks."""
    spans, start = [], 0
    for separator in [*SENTENCE_END.finditer(text), None]:
        end = len(text) if separator is None else separator.start()
        if text[start:end].strip():
            spans.append((start, end))
        start = end if separator is None else separator.end()
    return spans


def sentences(text: str) -> list[str]:
    """A text's statements, without the space around them."""
    return [text[start:end].strip() for start, end in sentence_spans(text)]


def prefixes(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], lengths: Sequence[int]) -> list[str]:
    """The first tokens of each text, as text, without a character that the cut would split."""
    rows = token_ids(tokenizer, texts, special=False)

    def first(row: list[int]) -> str:
        return str(tokenizer.decode(row, clean_up_tokenization_spaces=False)).rstrip("\ufffd")

    return [
        text if len(row) <= length else first(row[:length])
        for text, row, length in zip(texts, rows, lengths, strict=True)
    ]
