"""What kind of token an activation was read at: part of a word, digit, punctuation, special."""

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from nla.data.documents import special_ids

SPACE = ("Ġ", "▁")  # how byte-level and SentencePiece tokenizers mark that a word begins
TYPES = ("word", "word start", "word inside", "word end", "digit", "punctuation", "special")


def token_types(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Sequence[int]], following: Sequence[int]
) -> list[str]:
    """The type, out of `TYPES`, of the last token of each row.

    Args:
        following: the token after each row; -1 where the text ends. `word` is a whole word in one token.
    """
    special = special_ids(tokenizer)
    found = []
    for row, after in zip(tokens, following, strict=True):
        token = row[-1]
        text = str(tokenizer.decode([token])).strip()
        if token in special:
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
