"""`nla info`: what a pair is, from its metadata alone; no weights are fetched or read.

It reads the two `nla_meta.yaml`, looks for an adapter beside the weights, and shows the evaluation: that of the pair's
run (metrics.json), else the model card's.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nla.commands.publish import interval, read_metrics
from nla.errors import NLAError
from nla.models.lora import ADAPTER, ADAPTER_CONFIG, saved_adapter
from nla.models.pretrained.loading import HALVES, find_halves
from nla.models.pretrained.metadata import METADATA, OLDER, Metadata, parse_yaml, read_metadata, read_yaml

CARD = "README.md"
METRICS = Path("evaluation", "metrics.json")
WANTED = (f"*{METADATA}", f"*{ADAPTER}/{ADAPTER_CONFIG}", f"*{CARD}")
Line = tuple[str, str, str]  # name, of the verbalizer, of the reconstructor


def describe(pair: str) -> list[Line]:
    """Each fact with the two halves' values, "" if it does not concern one. Raises ReleaseError."""
    folders = find_halves(pair, patterns=WANTED)
    halves = [read_metadata(folder) for folder in folders]
    lines = [_line(name, *(str(getattr(half, name)) for half in halves)) for name in ("role", "stage", "base_model")]
    lines += [
        _line("base_revision", *(half.base_revision or "not recorded" for half in halves)),
        _line("layer", *(f"block {half.layer}, counted from 0" for half in halves)),
        *(_line(name, *(str(getattr(half, name)) for half in halves)) for name in ("d_model", "mse_scale")),
        ("injection_scale", str(halves[0].injection_scale), ""),
        ("marker", _marker(halves[0]), ""),
        _line("format", *map(_format, folders)),
        _line("weights", *map(_weights, folders)),
    ]
    for column, half in enumerate(halves):
        if half.role in half.templates:
            cells = [half.templates[half.role] if column == index else "" for index in range(2)]
            lines.append((f"template {half.role}", cells[0], cells[1]))
    if any(half.parents for half in halves):
        lines.append(_line("continued from", *(", ".join(half.parents) for half in halves)))
    lines += [("evaluation", text, "") for text in evaluation(Path(pair), folders)]
    return lines


def _line(name: str, first: str, second: str) -> Line:
    return name, first, second


def _marker(metadata: Metadata) -> str:
    tokens = metadata.tokens
    beside = [tokens.get(f"injection_{side}_neighbor_id") for side in ("left", "right")]
    between = f", between tokens {beside[0]} and {beside[1]}" if None not in beside else ""
    return f"{tokens.get('injection_char')!s}, token {tokens.get('injection_token_id')}{between}"


def _format(folder: Path) -> str:
    content = read_yaml(folder / METADATA)
    used = {content.get("role"), *content.get("prompt_templates", {})}
    older = [name for name in OLDER.values() if name in used]
    spelling = f", older names ({', '.join(older)})" if older else ""
    return f"released, schema_version {content.get('schema_version', 'absent')}{spelling}"


def _weights(folder: Path) -> str:
    adapter = saved_adapter(folder)
    if adapter is None:
        return "whole"
    return (
        f"adapter of rank {adapter['rank']} and alpha {adapter['alpha']:g} in {ADAPTER}/, and whole with it merged in"
    )


def evaluation(pair: Path, folders: tuple[Path, Path]) -> Iterator[str]:
    """The numbers of the pair's evaluation and where they are, or that there are none."""
    for path in dict.fromkeys((pair.resolve().parent / METRICS, pair / METRICS)):
        if path.is_file() and folders[0].parent.resolve() == pair.resolve():
            yield from _told(path)
            return
    for half, folder in zip(HALVES, folders, strict=True):
        results = list(_on_card(folder / CARD))
        if results:
            yield from (f"{text} (model card of the {half})" for text in results)
            return
    yield "no numbers beside the pair: python evaluate.py nla=<pair>"


def _told(path: Path) -> Iterator[str]:
    try:
        metrics = read_metrics(path)
    except NLAError as error:
        yield str(error)
        return
    yield f"FVE {_number(metrics['fve'], metrics.get('fve_ci95'))} on {metrics.get('n')} activations of " + (
        f"{metrics.get('documents')} documents ({METRICS})"
    )
    if metrics.get("fve_warm_start") is not None:
        yield f"FVE of the warm start {_number(metrics['fve_warm_start'], metrics.get('fve_warm_start_ci95'))}"
    for name, control in (metrics.get("controls") or {}).items():
        if isinstance(control, Mapping) and control.get("fve") is not None:
            yield f"control {name}: FVE {_number(control['fve'], control.get('ci95'))}"


def _on_card(path: Path) -> Iterator[str]:
    """Results in the card's front matter, under `model-index` as the hub has it."""
    if not path.is_file():
        return
    _, _, rest = path.read_text(encoding="utf-8", errors="replace").partition("---\n")
    try:
        front = parse_yaml(rest.partition("\n---")[0], path)
        for index in front.get("model-index") or ():
            for result in index["results"]:
                where = result.get("dataset", {}).get("name", "unnamed data")
                for metric in result["metrics"]:
                    yield f"{metric.get('name') or metric['type']} {metric['value']} on {where}"
    except (NLAError, KeyError, TypeError, AttributeError) as error:
        yield f"{path.name} cannot be read: {error}"


def _number(value: Any, bounds: Any) -> str:
    between = interval(bounds)
    text = f"{value:.3f}" if isinstance(value, int | float) else str(value)
    return f"{text} ({between})" if between else text
