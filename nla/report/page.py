"""Records as one self-contained HTML file that loads nothing and runs nothing but its own script.

The data are in a block that no browser executes, as ASCII without `<`, `>` and `&`; the script inserts them as text,
never as markup. The content security policy allows this script and this style by their hashes, and nothing else.
"""

import base64
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from nla import files
from nla.report import figures
from nla.report.records import Report, TextRecord

SCRIPTS = ("blocks.js", "head.js", "tokens.js", "choosing.js", "start.js")  # one script, in this order
MOST_BYTES = 10_000_000  # of one file
ESCAPES = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}


def write_report(
    report: Report,
    path: Path,
    *,
    metrics: Mapping[str, Any] | None = None,
    curves: Sequence[Mapping[str, Any]] = (),
    verdicts: Sequence[tuple[bool, str]] = (),
    most_bytes: int = MOST_BYTES,
) -> list[Path]:
    """Write the page, or several that link to each other where one would be too large; the paths written.

    Args:
        metrics: content of a metrics.json: bars of the header, and a table for each suite.
        curves: of the training, from `nla.report.figures.curves`.
        verdicts: sentences about the pair, each with whether the evaluation proves it.
        most_bytes: of one file; further texts go to `<name>-2.html` and so on.
    """
    parts = list(split(report, most_bytes))
    paths = [path] + [path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(2, len(parts) + 1)]
    pages = [{"file": p.name, "texts": [text.name for text in part]} for p, part in zip(paths, parts, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, (file, part) in enumerate(zip(paths, parts, strict=True)):
        shown = {"metrics": metrics, "curves": curves, "verdicts": verdicts} if number == 0 else {}
        html = page(dataclasses.replace(report, texts=part), **shown, pages=pages if len(pages) > 1 else ())
        files.write_text(file, html)
    return paths


def page(
    report: Report,
    *,
    metrics: Mapping[str, Any] | None = None,
    curves: Sequence[Mapping[str, Any]] = (),
    verdicts: Sequence[tuple[bool, str]] = (),
    pages: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The HTML. `pages`: the files that the texts are spread over, this one among them."""
    metrics = metrics or {}
    extra = {
        "bars": figures.bars(metrics),
        "tables": figures.tables(metrics),
        "curves": list(curves),
        "verdicts": sorted(([proven, text] for proven, text in verdicts), key=lambda item: not item[0]),
        "pages": list(pages),
        "about": {key: metrics[key] for key in ("n", "documents", "command", "dtype", "seed") if key in metrics},
    }
    template, style = _asset("page.html"), _asset("page.css")
    script = '"use strict";\n(() => {\n' + "\n".join(map(_asset, SCRIPTS)) + "})();\n"
    slots = {
        "STYLE_HASH": _hash(style),
        "SCRIPT_HASH": _hash(script),
        "STYLE": style,
        "SCRIPT": script,
        "RECORDS": report.to_json().translate(ESCAPES),
        "EXTRA": json.dumps(extra, ensure_ascii=True, separators=(",", ":")).translate(ESCAPES),
    }
    before, *pieces = template.split("{{")
    return before + "".join(slots[name] + rest for name, _, rest in (piece.partition("}}") for piece in pieces))


def split(report: Report, most_bytes: int) -> Iterator[list[TextRecord]]:
    """The texts by file. One that is too large by itself is cut between tokens; positions stay those of the text."""
    part: list[TextRecord] = []
    size = 0
    for piece, length in itertools.chain.from_iterable(_pieces(text, most_bytes) for text in report.texts):
        if part and size + length > most_bytes:
            yield part
            part, size = [], 0
        part.append(piece)
        size += length
    yield part


def _pieces(text: TextRecord, most_bytes: int) -> list[tuple[TextRecord, int]]:
    """The text, or what it is cut into, each with its size in bytes."""
    size = _size(text)
    count = -(-size // most_bytes)
    if count <= 1 or len(text.results) < 2 * count:
        return [(text, size)]
    bounds = [index * len(text.results) // count for index in range(count + 1)]
    pieces = []
    for number, (first, last) in enumerate(itertools.pairwise(bounds), start=1):
        results = text.results[first:last]
        shift = results[0].start if number > 1 else 0
        end = results[-1].end if number < count else len(text.text)
        moved = [dataclasses.replace(token, start=token.start - shift, end=token.end - shift) for token in results]
        name = f"{text.name}, part {number} of {count}"
        piece = dataclasses.replace(text, name=name, text=text.text[shift:end], results=moved)
        pieces.append((piece, _size(piece)))
    return pieces


def _size(text: TextRecord) -> int:
    return len(Report([text]).to_json().translate(ESCAPES))


def _asset(name: str) -> str:
    return resources.files("nla.report").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a Content-Security-Policy names an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
