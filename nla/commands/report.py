"""`nla report <pair> "text"`: a page with every token of a text, its explanation and its error, in one offline file."""

import argparse
import importlib.metadata
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from nla import files
from nla.commands.cli import named_pair
from nla.errors import ConfigError, DataError
from nla.models.backbone import usable_device
from nla.models.pair import NLA
from nla.models.target import Target
from nla.report import read_texts, to_json, write_page

RECORDS = "tokens.json"


def main(arguments: Sequence[str]) -> int:
    """Write the page and the records beside it; the exit status. Raises NLAError."""
    parser = argparse.ArgumentParser(prog="nla report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pair", nargs="?", help="folder or hub id of a saved pair, or the name of a run")
    parser.add_argument("text", nargs="*", help="texts to be read, each in quotation marks")
    parser.add_argument("--file", type=Path, default=None, help="UTF-8 text to be read; an empty line parts texts")
    parser.add_argument("--from", dest="records", type=Path, default=None, help="make the page of stored records alone")
    parser.add_argument("--metrics", type=Path, default=None, help="evaluation/metrics.json, shown on the page")
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="the page (default report.html)")
    parser.add_argument("--samples", type=int, default=0, help="sampled explanations of each token (default 0)")
    parser.add_argument("--max-new-tokens", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32", help="of the weights: float32 (default), bfloat16, float16, nf4")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, mps")
    options = parser.parse_args(arguments)
    if (options.records is None) == (options.pair is None):
        raise ConfigError('give a pair and a text, as in nla report smollm2 "a text", or --from tokens.json')
    if options.samples < 0:
        raise ConfigError(f"--samples {options.samples}: must be 0 or more")
    metrics = None if options.metrics is None else _json(options.metrics)
    data = _json(options.records) if options.records is not None else _read(options, _texts(options))
    pages = write_page(data, options.output, metrics=metrics)
    if options.records is None:
        files.write_text(options.output.with_name(RECORDS), json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    print(f"Open {' and '.join(map(str, pages))} in a browser: double click is enough.")
    return 0


def _texts(options: argparse.Namespace) -> list[str]:
    texts = list(options.text)
    if options.file is not None:
        texts += _content(options.file).split("\n\n")
    texts = [text.strip() for text in texts if text.strip()]
    if not texts:
        raise ConfigError("no text to read: give one in quotation marks, or --file")
    return texts


def _read(options: argparse.Namespace, texts: list[str]) -> dict[str, Any]:
    device, name = usable_device(options.device, "--device"), named_pair(options.pair)
    target = Target.of_pair(name, options.dtype).to(device)
    pair = NLA.from_pretrained(name, dtype=options.dtype, adapter="saved", base=target.model).to(device)
    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("reading", total=len(texts))
        records = read_texts(
            pair,
            target,
            texts,
            samples=options.samples,
            max_new_tokens=options.max_new_tokens,
            seed=options.seed,
            progress=lambda done, _: bars.update(task, completed=done),
        )
    about = {"created": time.strftime("%Y-%m-%d"), "nla_version": importlib.metadata.version("nla")}
    return to_json(pair, records, pair=options.pair, **about)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_content(path))
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: holds no JSON object")
    return found


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from error
