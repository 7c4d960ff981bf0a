"""What kind of token an activation was read at: part of a word, digit, punctuation, special."""

import re
from collections.abc import Sequence, Set
from typing import Any

from transformers import PreTrainedTokenizerBase

from nla.data.documents import special_ids

SPACE = ("Ġ", "▁")  # how byte-level and SentencePiece tokenizers mark that a word begins
TYPES = ("word", "word start", "word inside", "word end", "digit", "punctuation", "special")
HEADER = 2  # tokens after a chat's marker that belong to it: the role, a line break


def token_types(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Sequence[int]], following: Sequence[int]
) -> list[str]:
    """The type, out of `TYPES`, of the last token of each row.

    `word` is a whole word in one token. `special` is a chat template's: its markers and the `HEADER` tokens after one.
    The token that the tokenizer itself puts before every text is no marker.

    Args:
        following: the token after each row; -1 where the text ends.
    """
    special = special_ids(tokenizer)
    skipped = _puts_before(tokenizer)
    found = []
    for row, after in zip(tokens, following, strict=True):
        token = row[-1]
        text = str(tokenizer.decode([token])).strip()
        if token in special or _in_header(row, special, skipped):
            found.append("special")
        elif re.search(r"\d", text):
            found.append("digit")
        elif not re.search(r"\w", text):
            found.append("punctuation")
        else:
            start = len(row) == 1 or row[-2] in special or begins(tokenizer, token)
            start = start or not re.search(r"\w", str(tokenizer.decode([row[-2]])))
            end = after < 0 or after in special or begins(tokenizer, after)
            end = end or not re.search(r"\w", str(tokenizer.decode([after])))
            found.append({(1, 1): "word", (1, 0): "word start", (0, 0): "word inside", (0, 1): "word end"}[start, end])
    return found


def begins(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    """Whether the token begins with white space, and so a word."""
    piece = str(tokenizer.convert_ids_to_tokens(token))
    return piece.startswith(SPACE) or piece[:1].isspace()


def leading(tokenizer: PreTrainedTokenizerBase, row: Sequence[int]) -> list[int]:
    """The tokens at the start of a row that the tokenizer itself puts before every text (BOS)."""
    count = _puts_before(tokenizer)
    return list(row[:count])


def _puts_before(tokenizer: PreTrainedTokenizerBase) -> int:
    special, encoded = special_ids(tokenizer), tokenizer("a")
    ids: Any = encoded["input_ids"]
    return next((index for index, token in enumerate(ids) if token not in special), 0)


def _in_header(row: Sequence[int], special: Set[int], skipped: int) -> bool:
    """Whether one of the few tokens before the last one is a marker."""
    return any(token in special for token in row[max(skipped, len(row) - 1 - HEADER) : -1])
