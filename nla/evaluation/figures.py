"""Pictures of an evaluation, for a person."""

from pathlib import Path
from typing import Any

from nla import files

FIGURE = "by_tokens_read.png"


def plot_tokens_read(metrics: dict[str, Any], folder: Path) -> Path | None:
    """FVE and the truth of claims by the number of tokens read, with 95% intervals; None if neither was computed."""
    from matplotlib.figure import Figure

    panels = []
    if metrics.get("breakdown"):
        found = metrics["breakdown"]["by_tokens_read"]
        panels.append(("FVE", found, "fve", "ci95"))
    if metrics.get("claims"):
        found = {name: part for name, part in metrics["claims"]["by_tokens_read"].items() if part["n"]}
        panels.append(("true claims", found, "true_share", "true_share_ci95"))
    if not panels:
        return None
    figure = Figure(figsize=(4.2 * len(panels), 3.2), layout="constrained")
    for index, (title, parts, key, interval) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), index + 1)
        values = [part[key] for part in parts.values()]
        bounds = [part[interval] or [part[key]] * 2 for part in parts.values()]
        # with a handful of documents a percentile interval can leave its own point outside
        below = [max(0.0, value - low) for value, (low, _) in zip(values, bounds, strict=True)]
        above = [max(0.0, high - value) for value, (_, high) in zip(values, bounds, strict=True)]
        axes.errorbar(range(len(values)), values, yerr=[below, above], fmt="o-", capsize=4)
        axes.set_xticks(range(len(values)), list(parts))
        axes.set_xlabel("tokens read")
        axes.set_title(title)
        axes.grid(alpha=0.3)
    folder.mkdir(parents=True, exist_ok=True)
    with files.new_file(folder / FIGURE) as scratch:
        figure.savefig(scratch, dpi=120, format="png")
    return folder / FIGURE
