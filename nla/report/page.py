"""`report.html`: records, figures and curves in one self-contained file that asks no network for anything.

The data stand in a block that is not run; every text reaches the page as text. The policy allows the page's own style
and script by their hashes, and nothing else.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from nla import files
from nla.errors import DataError
from nla.report.records import FORMAT, VERSION

TOKENS_PER_PAGE = 5000
ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def write_page(
    data: Mapping[str, Any],
    path: Path,
    *,
    metrics: Mapping[str, Any] | None = None,
    verdicts: Iterable[tuple[bool, str]] = (),
    curves: Sequence[tuple[str, Sequence[tuple[float, float]]]] = (),
) -> list[Path]:
    """Write the page, and `<name>-2.html`, ... beside it for more than 5000 tokens; returns all of them.

    Args:
        data: as `to_json` gives it, or as it was stored.
        metrics: of an evaluation, whose suites are shown as tables.
        verdicts: what the evaluation proves, `(proven, sentence)`.
        curves: of the training, `(title, [(step, value)])`.

    Raises DataError for records of another format.
    """
    if (data.get("format"), data.get("version")) != (FORMAT, VERSION):
        raise DataError(
            f"records of format {data.get('format')!r}, version {data.get('version')!r}: expected {FORMAT!r}, "
            f"{VERSION}; make them anew with nla report"
        )
    parts = list(_parts(data["texts"]))
    names = [path.name] + [f"{path.stem}-{number}{path.suffix}" for number in range(2, len(parts) + 1)]
    written = []
    for name, texts in zip(names, parts, strict=True):
        page = {**data, "texts": texts, "verdicts": [list(verdict) for verdict in verdicts]}
        page |= {"metrics": metrics, "curves": curves}
        if len(names) > 1:
            page |= {"pages": names, "page": name}
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path.with_name(name), page_text(page))
        written.append(path.with_name(name))
    return written


def page_text(data: Mapping[str, Any]) -> str:
    """The whole page."""
    style, script = _resource("page.css"), _resource("page.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; "
        "form-action 'none'"
    )
    title = "".join(
        sign if sign.isalnum() else " " for sign in f"{data.get('model', '')} {data.get('layer_index', '')}"
    )
    values = {"policy": policy, "title": f"nla {title.strip()}", "style": style, "script": script, "data": _data(data)}
    pieces = _resource("page.html").split("{{")
    text = pieces[0]
    for piece in pieces[1:]:  # never looks into what was filled in
        name, _, rest = piece.partition("}}")
        text += values[name] + rest
    return text


def _data(data: Mapping[str, Any]) -> str:
    """JSON that cannot end its block or be taken for markup; a number that is not finite becomes null."""
    text = json.dumps(_finite(data), ensure_ascii=False, allow_nan=False)
    return "".join(ESCAPED.get(sign, sign) for sign in text)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 5) if value == value and abs(value) != float("inf") else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _parts(texts: Sequence[Mapping[str, Any]]) -> Iterable[list[Mapping[str, Any]]]:
    """Texts of at most 5000 tokens together; a longer text is cut into parts of its own."""
    page: list[Mapping[str, Any]] = []
    count = 0
    for text in texts:
        results = text["results"]
        for first in range(0, max(1, len(results)), TOKENS_PER_PAGE):
            part = {**text, "results": results[first : first + TOKENS_PER_PAGE]}
            if page and count + len(part["results"]) > TOKENS_PER_PAGE:
                yield page
                page, count = [], 0
            page.append(part)
            count += len(part["results"])
    yield page


def _resource(name: str) -> str:
    return (resources("nla.report") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()
