"""Activations of a chat, for every token, one role's words, or chosen spans."""

from collections.abc import Mapping, Sequence
from typing import Any

from nla.core.records import Reading
from nla.errors import DataError
from nla.models.target import Target

Messages = Sequence[Mapping[str, str]]


def read_chat(
    target: Target,
    messages: Messages,
    where: str | Sequence[str] | Sequence[tuple[int, int]] = "all",
    generation_prompt: bool = False,
) -> Reading:
    """Read the chat as the target's own template renders it.

    Args:
        messages: `[{"role": ..., "content": ...}, ...]`.
        where: `"all"` tokens except special ones; `"last"`; a role, for the tokens of its contents; or a list of spans:
            pieces of text (every occurrence) or `(start, end)` characters of the rendered chat. A token is read if it
            shares a character with a span.
        generation_prompt: whether to append the template's opening of an answer, where the model is about to speak.

    Raises DataError: no chat template, no token in `where`, a piece of text that does not occur.
    """
    rendered = render(target, messages, generation_prompt)
    encoded: Any = target.tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
    special = set(target.tokenizer.all_special_ids)
    if where == "all" or where == "last":
        chosen = [index for index, token in enumerate(ids) if token not in special]
        chosen = chosen[-1:] if where == "last" else chosen
    else:
        spans = _spans(rendered, messages, where)
        chosen = [
            index
            for index, (start, end) in enumerate(offsets)
            if end > start and any(start < last and end > first for first, last in spans)
        ]
    if not chosen:
        raise DataError(f"where={where!r}: no token of the chat is there")
    return target.read_ids([ids], [chosen])


def render(target: Target, messages: Messages, generation_prompt: bool = False) -> str:
    """The chat as text. Raises DataError if the tokenizer has no template or the template refuses the roles."""
    if not target.tokenizer.chat_template:
        raise DataError("this target's tokenizer has no chat template: give plain text to target.read instead")
    try:
        text = target.tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=generation_prompt
        )
    except Exception as error:  # jinja2 raises whatever the template's author chose
        raise DataError(f"the chat template refuses these messages ({error}); check roles and their order") from error
    return str(text)


def _spans(rendered: str, messages: Messages, where: Any) -> list[tuple[int, int]]:
    if isinstance(where, str):
        return _contents(rendered, messages, where)
    spans: list[tuple[int, int]] = []
    for span in where:
        if isinstance(span, str):
            spans += _occurrences(rendered, span)
        else:
            start, end = span
            if not 0 <= start < end <= len(rendered):
                raise DataError(f"span ({start}, {end}): the rendered chat has {len(rendered)} characters")
            spans.append((start, end))
    return spans


def _contents(rendered: str, messages: Messages, role: str) -> list[tuple[int, int]]:
    """Where the contents of one role's messages are; a template may have stripped them."""
    roles = list(dict.fromkeys(message["role"] for message in messages))
    if role not in roles:
        raise DataError(f"where={role!r}: expected 'all', 'last', a list of spans, or a role of {roles}")
    spans, start = [], 0
    for message in messages:
        content = message["content"].strip()
        first = rendered.find(content, start)
        if first < 0:
            raise DataError(f"the chat template changes a message of role {message['role']!r}: name spans instead")
        start = first + len(content)
        if message["role"] == role and content:
            spans.append((first, start))
    return spans


def _occurrences(rendered: str, piece: str) -> list[tuple[int, int]]:
    spans, start = [], rendered.find(piece) if piece else -1
    while start >= 0:
        spans.append((start, start + len(piece)))
        start = rendered.find(piece, start + len(piece))
    if not spans:
        raise DataError(f"span {piece!r} does not occur in the chat")
    return spans
