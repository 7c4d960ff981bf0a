"""The two prompts: marker, templates, rendering. All of it is checked once, on load."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nla.errors import ConfigError, DataError, InjectionError

T = TypeVar("T")
MARKERS = tuple(chr(code) for code in range(0x3200, 0x3400))  # enclosed CJK: rare in text, often one token
CODE_POINT = re.compile(r"U\+[0-9A-Fa-f]{4,6}")  # a marker without quoting: model.marker=U+2588
UNUSED = re.compile(r"[<\[].*(unused|reserved|extra_id).*[>\]]", re.IGNORECASE)  # tokens kept free for such a purpose
MARKER_SLOT, EXPLANATION_SLOT = "{injection_char}", "{explanation}"


@dataclass(frozen=True, slots=True)
class Templates:
    """The prompts with their slots, filled by plain replacement (braces elsewhere are just text)."""

    verbalizer: str  # holds {injection_char} once
    reconstructor: str  # holds {explanation} once

    def __post_init__(self) -> None:
        for name, text, slot in (
            ("verbalizer", self.verbalizer, MARKER_SLOT),
            ("reconstructor", self.reconstructor, EXPLANATION_SLOT),
        ):
            if text.count(slot) != 1:
                raise ConfigError(
                    f"{name} template (model.templates.{name}) holds {slot} {text.count(slot)} times, "
                    "expected exactly once"
                )
        if not self.reconstructor.split(EXPLANATION_SLOT)[1].strip():
            raise ConfigError(
                f"reconstructor template (model.templates.reconstructor) ends with {EXPLANATION_SLOT}: a fixed suffix "
                "must follow, because the prediction is read at the prompt's last token"
            )


@dataclass(frozen=True, slots=True)
class VerbalizerPrompt:
    """The rendered prompt and where the activation enters it."""

    tokens: list[int]
    position: int
    marker: str
    marker_id: int
    left_id: int
    right_id: int
    end_of_turn: int  # the token that ends an answer


def several(texts: Sequence[T]) -> Sequence[T]:
    """The texts. Raises DataError for a single string, whose characters would be read as texts of their own."""
    if isinstance(texts, str):
        raise DataError(f"{texts[:40]!r} is one text where several are expected: put it in a list, [text]")
    return texts


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special: bool = True) -> list[list[int]]:
    """Ids of many texts, with the tokenizer's own special tokens unless `special=False`."""
    if not several(texts):
        return []
    encoded: Any = tokenizer(list(texts), add_special_tokens=special)
    return [list(row) for row in encoded["input_ids"]]


def pad_id(tokenizer: PreTrainedTokenizerBase, otherwise: int = 0) -> int:
    """The padding id; padding is never attended to, so any id will do if the tokenizer has none."""
    token: Any = tokenizer.pad_token_id
    return otherwise if token is None else int(token)


def find_marker(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str] = ()) -> str:
    """A marker for this tokenizer: the first candidate that is one token and occurs in none of `texts`.

    Candidates, best first: the characters of U+3200-U+33FF, which the released pairs use; other characters that are
    one token, symbols before letters and rare ones (high ids) first; special tokens that the chat template does not
    use, such as `<unused0>`. Raises InjectionError if there is none.
    """
    read = list(texts)
    for marker in _candidates(tokenizer):
        if marker_id(tokenizer, marker) is not None and not any(marker in text for text in read):
            return marker
    raise InjectionError(
        "no character and no spare special token of this tokenizer can mark the activation's place: add a token, for "
        "example tokenizer.add_tokens(['\u320e']), before the target is trained, and name it as the marker"
    )


def resolve_marker(tokenizer: PreTrainedTokenizerBase, marker: str | int | None) -> str:
    """The marker's text: itself, of a code point `U+2588`, of a token id; None searches. Raises InjectionError."""
    if marker is None:
        return find_marker(tokenizer)
    if isinstance(marker, str):
        return chr(int(marker[2:], 16)) if CODE_POINT.fullmatch(marker) else marker
    text = _decode(tokenizer, [marker]).strip() if 0 <= marker < len(tokenizer) else ""
    if not text or marker_id(tokenizer, text) != marker:
        raise InjectionError(
            f"model.marker={marker}: token {marker} of this tokenizer ({len(tokenizer)} tokens) is no text that it "
            "encodes as this one token: choose another, or model.marker=null to search for one"
        )
    return text


def marker_id(tokenizer: PreTrainedTokenizerBase, marker: str) -> int | None:
    """The one token of a marker; None if it is not one token, or not readable from it."""
    ids = tokenizer.encode(marker, add_special_tokens=False)
    if len(ids) == 2 and not _decode(tokenizer, ids[:1]).strip():
        ids = ids[1:]  # sentencepiece puts a space before a text
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id or _decode(tokenizer, ids).strip() != marker:
        return None
    return ids[0]


def _candidates(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Best first. Only where the released range has none is the whole vocabulary searched."""
    yield from MARKERS
    yield from _single_characters(tokenizer)
    yield from _spare_special_tokens(tokenizer)


def _single_characters(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Printable characters beyond Latin-1 that are one token of the vocabulary, symbols and high ids first."""
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    ids = [token for token in sorted(tokenizer.get_vocab().values(), reverse=True) if token not in special]
    texts = (str(text).strip() for text in tokenizer.batch_decode([[token] for token in ids]))
    characters = dict.fromkeys(
        text for text in texts if len(text) == 1 and ord(text) > 0xFF and text != "\ufffd" and text.isprintable()
    )
    return sorted(characters, key=lambda character: not unicodedata.category(character).startswith("S"))


def _spare_special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Tokens without a role: not one of the named special tokens, not in the chat template; unused ones first."""
    template = str(tokenizer.chat_template or "")
    named = [str(token) for token in tokenizer.special_tokens_map.values()]
    added = [token for _, token in sorted(tokenizer.added_tokens_decoder.items())]
    unused = [token for token in tokenizer.get_vocab() if UNUSED.fullmatch(token)]
    special = [str(token) for token in added if token.special]
    return [
        token for token in dict.fromkeys([*sorted(unused), *special]) if token not in named and token not in template
    ]


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def chat_ids(tokenizer: PreTrainedTokenizerBase, content: str) -> list[int]:
    """One user message through the chat template with the generation prompt; the bare text without a template.

    transformers returns a list, a nested list or a BatchEncoding, by version and flags: all give the same ids.
    """
    if not tokenizer.chat_template:
        return token_ids(tokenizer, [content + "\n"])[0]
    messages = [{"role": "user", "content": content}]
    rendered: Any = tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    if isinstance(rendered, Mapping):
        rendered = rendered["input_ids"]
    if hasattr(rendered, "tolist"):
        rendered = rendered.tolist()
    if rendered and isinstance(rendered[0], list):
        rendered = rendered[0]
    return [int(token) for token in rendered]


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The special token that the chat template writes after an answer, else the tokenizer's end of sequence."""
    if tokenizer.chat_template:
        answer = "\u2042"
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
        try:
            rendered = str(tokenizer.apply_chat_template(messages, tokenize=False))
        except Exception:  # a template without an assistant role: jinja2 raises anything
            rendered = ""
        tail = rendered.rpartition(answer)[2] if answer in rendered else ""
        special = {int(i) for i in tokenizer.added_tokens_decoder} | set(tokenizer.all_special_ids)
        for token in tokenizer.encode(tail, add_special_tokens=False):
            if token in special:
                return token
    end: Any = tokenizer.eos_token_id
    if end is None:
        raise InjectionError("the tokenizer has no end-of-sequence token: explanations could never end; set eos_token")
    return int(end)


def build_verbalizer_prompt(tokenizer: PreTrainedTokenizerBase, template: str, marker: str) -> VerbalizerPrompt:
    """Render the prompt and find its one marker. Raises InjectionError: missing, twice, split, or at the edge."""
    if template.count(MARKER_SLOT) != 1:
        raise InjectionError(
            f"verbalizer template {template!r} holds {MARKER_SLOT} {template.count(MARKER_SLOT)} times, expected once"
        )
    marker_token = marker_id(tokenizer, marker)
    if marker_token is None:
        pieces = tokenizer.encode(marker, add_special_tokens=False)
        raise InjectionError(
            f"marker {marker!r} is not one token of this tokenizer (it gives ids {pieces}): "
            "choose another marker, or model.marker=null to search for one"
        )
    tokens = chat_ids(tokenizer, template.replace(MARKER_SLOT, marker))
    count = tokens.count(marker_token)
    if count != 1:
        raise InjectionError(
            f"marker {marker!r} (id {marker_token}) occurs {count} times in the verbalizer prompt, expected once: "
            "change the template or the marker"
        )
    position = tokens.index(marker_token)
    if not 0 < position < len(tokens) - 1:
        raise InjectionError(
            f"marker {marker!r} is at the edge of the verbalizer prompt (token {position} of {len(tokens)}): "
            "put it between tags"
        )
    left, right = tokens[position - 1], tokens[position + 1]
    return VerbalizerPrompt(tokens, position, marker, marker_token, left, right, end_of_turn(tokenizer))


def suffix_ids(tokenizer: PreTrainedTokenizerBase, template: str) -> list[int]:
    """The token ids that end every filled reconstructor prompt, whatever the explanation is."""
    before, after = template.split(EXPLANATION_SLOT)
    filled = [before + text + after for text in ("a", "b c.", "D, e\n")]
    rows = token_ids(tokenizer, filled)
    length = 0
    while length < min(map(len, rows)) and len({row[-length - 1] for row in rows}) == 1:
        length += 1
    if length == 0:
        raise InjectionError(
            f"reconstructor template {template!r}: its suffix is not constant in this tokenizer; end it with a tag"
        )
    return list(rows[0][-length:])


def reconstructor_tokens(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    texts: Sequence[str],
    max_length: int,
    suffix: Sequence[int] | None = None,
) -> tuple[Int[Tensor, "sample time"], Bool[Tensor, "sample time"]]:
    """Fill, tokenize with the tokenizer's own special tokens, pad on the right.

    Every row ends with the template's suffix ids, so that the last real token is always the same: they are appended to
    a text that is cut at `max_length` or whose tokens merge with the suffix.
    """
    suffix = list(suffix_ids(tokenizer, template) if suffix is None else suffix)
    before, after = template.split(EXPLANATION_SLOT)
    rows = token_ids(tokenizer, [before + text + after for text in texts])
    keep = max_length - len(suffix)
    if keep < 1:
        raise ConfigError(f"max_length {max_length} leaves no room before the {len(suffix)} suffix tokens")
    for index, row in enumerate(rows):
        if row[-len(suffix) :] != suffix:
            row = token_ids(tokenizer, [before + texts[index]])[0] + suffix
        rows[index] = row if len(row) <= max_length else row[:keep] + suffix
    longest = max(map(len, rows), default=0)
    pad = pad_id(tokenizer)
    tokens = torch.tensor([row + [pad] * (longest - len(row)) for row in rows], dtype=torch.long)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    return tokens.view(len(rows), longest), torch.arange(longest) < lengths.unsqueeze(1)
