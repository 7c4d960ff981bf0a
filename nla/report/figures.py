"""metrics.json as bars and tables, metrics.csv as curves: plain lists that the page draws without knowing a key."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nla.errors import DataError

HEADLINE = {"fve": ("this pair", "pair"), "fve_warm_start": ("warm start", "before")}
CONTROL_NAMES = {
    "mean": "mean activation",
    "constant_direction": "best constant direction",
    "empty_text": "empty text",
    "mean_activation": "explanation of the mean",
    "shuffled": "another document's explanation",
    "source_text": "last words of the text",
    "nearest_neighbour": "nearest training explanation",
}
APART = ("controls", "seconds", "versions", "command", "model", "layer", "stage", "seed", "dtype")  # shown elsewhere
POINTS = 200  # of a curve
LONGEST_LIST = 24  # of values in one cell


def bars(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """FVE of the pair and of each control: `{label, value, interval, kind, reason}`.

    The kind is `pair`, `before` (the warm start) or `control`; a figure that is not finite counts as missing.
    """
    found = [
        _bar(label, metrics.get(key), metrics.get(f"{key}_ci95"), kind, metrics.get(f"{key}_reason"))
        for key, (label, kind) in HEADLINE.items()
        if key in metrics
    ]
    controls = metrics.get("controls")
    for key, control in controls.items() if isinstance(controls, dict) else ():
        if isinstance(control, dict):
            label = CONTROL_NAMES.get(key, words(key))
            found.append(_bar(label, control.get("fve"), control.get("ci95"), "control", control.get("reason")))
    return found


def tables(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Everything in metrics.json: `{title, columns, rows}`, cells as text; the loose figures first, then each group.

    A group of groups with figures becomes one table, a row each; deeper ones a table of their own below it.
    `<name>_ci95` and `ci95` join their figure's cell.
    """
    metrics = {key: value for key, value in metrics.items() if value not in ([], {}, None)}
    loose = {key: value for key, value in metrics.items() if key not in APART and not _is_group(value)}
    found = [_table("figures", {"": loose})] if loose else []
    for key, value in metrics.items():
        if _is_group(value) and key not in APART[1:]:
            found += _tables(words(key), value)
    return found


def curves(folder: Path) -> list[dict[str, Any]]:
    """Of a run's stages/*/metrics.csv: `{stage, name, points}`, validation first, at most 200 points each.

    Raises DataError for a file that is no table of numbers.
    """
    found: list[dict[str, Any]] = []
    for path in sorted(folder.glob("stages/*/metrics.csv"), key=lambda path: path.stat().st_mtime):
        try:
            rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
            columns = [name for name in (rows[0] if rows else {}) if name != "step"]
            for name in sorted(columns, key=lambda name: ("/validation/" not in name, name)):
                points = [(float(row["step"]), float(row[name])) for row in rows if row[name] not in ("", None)]
                points = thinned([point for point in points if math.isfinite(point[1])], POINTS)
                if len(points) > 1:
                    title = name.removeprefix(f"{path.parent.name}/").replace("validation/", "held out: ")
                    found.append({"stage": path.parent.name, "name": words(title), "points": points})
        except (KeyError, ValueError, TypeError, OSError) as error:
            raise DataError(f"{path}: cannot be read as metrics of a stage ({error})") from error
    return found


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most this many points, evenly spaced, first and last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(index * (len(points) - 1) / (most - 1))] for index in range(most)]


def words(key: str) -> str:
    return key.replace("_", " ").replace(".", " ")


def number(value: Any) -> str:
    """As a person reads it: three decimals, or three digits where that would show nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e9 and abs(value) >= 10):
        return str(int(value))
    return f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 1000 else f"{value:.3g}"


def _bar(label: str, value: Any, interval: Any, kind: str, reason: Any) -> dict[str, Any]:
    numbers = [value, *(interval or ())]
    known = all(isinstance(item, (int, float)) and math.isfinite(item) for item in numbers)
    value, interval = (value, list(interval) if interval else None) if known else (None, None)
    return {"label": label, "value": value, "interval": interval, "kind": kind, "reason": reason}


def _is_group(value: Any) -> bool:
    rows = isinstance(value, list) and len(value) > 0 and all(isinstance(child, dict) for child in value)
    return isinstance(value, dict) or rows


def _named(group: Any) -> dict[str, Any]:
    """A list of records as a group: each is named by its first entry."""
    if isinstance(group, dict):
        return group
    firsts = [next(iter(row.items()), ("", "")) for row in group]
    return {
        f"{words(key)} {number(value)}": {name: child for name, child in row.items() if name != key}
        for (key, value), row in zip(firsts, group, strict=True)
    }


def _tables(title: str, group: Any) -> list[dict[str, Any]]:
    group = _named(group)
    leaves = {key: value for key, value in group.items() if not _is_group(value)}
    flat = {key: value for key, value in group.items() if _is_group(value) and not any(map(_is_group, _values(value)))}
    deep = {key: value for key, value in group.items() if _is_group(value) and key not in flat}
    rows = {"": leaves} if leaves else {}
    found = []
    if leaves and flat and not set(leaves) & {key for value in flat.values() for key in _named(value)}:
        found.append(_table(title, rows))  # figures of another kind than those of the rows
        rows = {}
    for key, value in flat.items():
        if isinstance(value, list):
            found.append(_table(f"{title}: {words(key)}", _named(value)))
        else:
            rows[words(key)] = value
    if rows:
        found.append(_table(title, rows))
    for key, value in deep.items():
        found += _tables(f"{title}: {words(key)}", value)
    return found


def _values(group: Any) -> list[Any]:
    return list(group.values()) if isinstance(group, dict) else []


def _table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Many figures of one row are shown one a line."""
    names = dict.fromkeys(name for row in rows.values() for name in row)
    shown = [name for name in names if not _is_interval_of(name, names)]
    if list(rows) == [""]:
        cells = [[words(name), _cell(rows[""], name)] for name in shown]
        return {"title": title, "columns": ["", "value"], "rows": cells}
    cells = [[label or "all", *(_cell(row, name) for name in shown)] for label, row in rows.items()]
    return {"title": title, "columns": ["", *map(words, shown)], "rows": cells}


def _is_interval_of(name: str, names: Mapping[str, Any]) -> bool:
    return (name.endswith("_ci95") and name.removesuffix("_ci95") in names) or (name == "ci95" and len(names) > 1)


def _cell(row: Mapping[str, Any], name: str) -> str:
    """`0.728 (0.722 to 0.733)`; a plain `ci95` belongs to the figure before it."""
    if name not in row:
        return ""
    value, names = row[name], list(row)
    after = names[names.index(name) + 1 :][:1]
    interval = row.get(f"{name}_ci95", row["ci95"] if after == ["ci95"] else None)
    if isinstance(value, (list, tuple)):
        listed = ", ".join(map(number, value[:LONGEST_LIST]))
        return listed + (f", … ({len(value)} in all)" if len(value) > LONGEST_LIST else "")
    if isinstance(interval, (list, tuple)) and len(interval) == 2:
        return f"{number(value)} ({number(interval[0])} to {number(interval[1])})"
    return number(value)
