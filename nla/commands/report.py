"""`nla report <pair> "text"`: a page of what a pair says at every token of a text, and how far to believe it."""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from nla.commands.cli import named_pair
from nla.errors import ConfigError, DataError
from nla.evaluation.verdicts import verdicts
from nla.report import Report, read_report, read_tokens, write_report
from nla.report.figures import curves
from nla.report.records import write_records

METRICS = "metrics.json"


def main(arguments: Sequence[str]) -> int:
    """Write the page and, where the tokens are read now, their records beside it; the exit status. Raises NLAError."""
    parser = argparse.ArgumentParser(prog="nla report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pair", nargs="?", help="folder or hub id of a saved pair, or the name of a run")
    parser.add_argument("texts", nargs="*", metavar="text", help="texts to be read, in quotation marks")
    parser.add_argument("--file", type=Path, help="UTF-8 file with more texts, with an empty line between two")
    parser.add_argument("--from", dest="records", type=Path, nargs="+", metavar="tokens.json",
                        help="draw the page from records instead; several files come into one page")  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="of the page (default report.html)")
    parser.add_argument("--samples", type=int, default=0, help="beside the greedy explanation, for the confidence")
    parser.add_argument("--max-tokens", type=int, default=None, help="read only the first of each text")
    parser.add_argument("--metrics", type=Path, default=None,
                        help="metrics.json of the pair (default: of its run, or beside the records)")  # fmt: skip
    parser.add_argument("--run", type=Path, default=None, help="folder of the run, for the curves of its training")
    parser.add_argument("--max-new-tokens", type=int, default=150)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32", help="of the weights: float32 (default), bfloat16, float16, nf4")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, mps")
    options = parser.parse_args(arguments)
    if options.records:
        if options.pair or options.file:
            raise ConfigError("--from draws the page from records: give either it, or a pair with texts")
        report, run = read_report(options.records), run_of(options.records[0])
    else:
        if not options.pair:
            raise ConfigError('give a pair and a text, nla report smollm2 "some text", or records with --from')
        texts = [*options.texts, *(texts_of(options.file) if options.file else ())]
        for name, least in (("max_new_tokens", 1), ("batch_size", 1), ("max_tokens", 1)):
            value = getattr(options, name)
            if value is not None and value < least:
                raise ConfigError(f"--{name.replace('_', '-')} {value}: must be at least {least}")
        if not texts or not all(text.strip() for text in texts):
            raise ConfigError("a text is empty: give at least one word, in quotation marks, or --file with texts")
        name = named_pair(options.pair)
        report, run = read(name, texts, options), run_of(Path(name))
        write_records(report, options.output.with_suffix(".json"))
    run = options.run or run
    metrics = read_metrics(options.metrics, options.records, run)
    proven = (
        [(verdict.proven, verdict.text) for verdict in verdicts(metrics)] if metrics and "controls" in metrics else []
    )
    paths = write_report(report, options.output, metrics=metrics, curves=curves(run) if run else (), verdicts=proven)
    count = sum(len(text.results) for text in report.texts)
    others = "" if len(paths) == 1 else f" and {len(paths) - 1} more, linked from it"
    print(f"{count} tokens of {len(report.texts)} texts: {paths[0]}{others}")
    return 0


def read(pair_name: str, texts: list[str], options: argparse.Namespace) -> Report:
    """Load the pair and read the texts with it."""
    from nla.models.backbone import usable_device
    from nla.models.pair import NLA
    from nla.models.target import Target

    device = usable_device(options.device, "--device")
    target = Target.of_pair(pair_name, options.dtype).to(device)
    pair = NLA.from_pretrained(pair_name, dtype=options.dtype, adapter="saved", base=target.model).to(device)
    with Progress(console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def progress(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase)
            bars.update(tasks[phase], completed=done, total=total)

        return read_tokens(
            pair,
            target,
            texts,
            pair=options.pair,
            samples=options.samples,
            max_new_tokens=options.max_new_tokens,
            max_tokens=options.max_tokens,
            batch_size=options.batch_size,
            seed=options.seed,
            progress=progress,
        )


def texts_of(path: Path) -> list[str]:
    """The texts of a file, with an empty line between two. Raises DataError."""
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--file {path}: cannot be read ({error})") from error
    return [text.strip("\n") for text in re.split(r"\n[ \t]*\n", content) if text.strip()]


def read_metrics(given: Path | None, records: Sequence[Path] | None, run: Path | None) -> dict[str, Any] | None:
    """The metrics.json that is named, beside the records, or of the run; None if there is none. Raises DataError."""
    folders = [*([records[0].parent] if records else []), *([run / "evaluation"] if run else [])]
    path = given or next((folder / METRICS for folder in folders if (folder / METRICS).is_file()), None)
    if path is None:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: holds no JSON object; give the metrics.json that evaluate.py has written")
    return found


def run_of(path: Path) -> Path | None:
    """The run's folder, above a pair or above its records; None for one from elsewhere."""
    return next((folder for folder in list(path.resolve().parents)[:3] if (folder / "stages").is_dir()), None)
