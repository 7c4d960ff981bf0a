"""Keeps secrets out of everything that is written to disk."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

HIDDEN = "***"
SECRET_KEY = re.compile(r"(^|_)(api_?key|access_?key|key_id|secret|password|passwd|credentials?|auth|token)$", re.I)
SECRET_VALUE = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{16,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bAKIA[0-9A-Z]{16}\b"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)


def redacted(node: Any) -> Any:
    """A copy of plain containers without secrets: by key, by the form of the value, and credentials inside URLs."""
    if isinstance(node, Mapping):
        return {
            key: HIDDEN if isinstance(value, str) and SECRET_KEY.search(str(key)) else redacted(value)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [redacted(value) for value in node]
    return SECRET_VALUE.sub(HIDDEN, node) if isinstance(node, str) else node


def secret_keys(node: Any, path: str = "") -> Iterator[str]:
    """Dotted keys of what `redacted` would hide; references such as `${oc.env:NAME}` hold no secret themselves."""
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        dotted = f"{path}.{key}" if path else str(key)
        if not isinstance(value, str):
            yield from secret_keys(value, dotted)
        elif not value.startswith("${") and redacted({str(key): value}) != {str(key): value}:
            yield dotted
