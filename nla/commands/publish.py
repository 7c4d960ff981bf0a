"""`nla publish`: a pair with a model card, pushed to the hub as two repositories, `<name>-av` and `<name>-ar`.

Paths of this machine are removed from the folders, then searched for, before the push; `--dry-run` stops there.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nla import files
from nla.errors import ConfigError, ReleaseError
from nla.models.pretrained.hub import remedy
from nla.models.pretrained.loading import HALVES, find_halves, read_facts
from nla.models.pretrained.metadata import METADATA, Metadata

ENDINGS: dict[str, str] = dict(zip(HALVES, ("av", "ar"), strict=True))
TEXT_FILES = (".json", ".yaml", ".md", ".txt", ".jinja")
LIMITS = """\
- FVE says how much of an activation its explanation carries, not that the explanation is true. Explanations confabulate
  specifics, and after joint training much of the signal sits in quoted fragments of text.
- No single statement should be trusted without another test; steering needs the control of an unrelated edit.
- The pair reads one layer of one model, on text like that which it was trained on."""


def prepare(pair: str, metrics: Path | None, licence: str, out: Path) -> dict[str, Path]:
    """The two folders to be pushed, by half, under `out`. Raises ReleaseError, ConfigError."""
    halves = dict(zip(HALVES, find_halves(pair), strict=True))
    av, _, _ = read_facts(*halves.values())
    if Path(av.base_model).is_absolute() or Path(av.base_model).exists():
        raise ReleaseError(
            f"{halves['verbalizer'] / METADATA}: base_checkpoint is {av.base_model!r}, a folder of this machine: "
            "nobody else could load it; train with model.id=<org/name>"
        )
    numbers = read_metrics(metrics)
    out.mkdir(parents=True)
    ready = {}
    for half, folder in halves.items():
        ready[half] = out / ENDINGS[half]
        shutil.copytree(folder, ready[half], ignore=shutil.ignore_patterns("README.md", ".*"), dirs_exist_ok=False)
        files.write_text(ready[half] / "README.md", card(av, half, numbers, licence))
        refuse_paths(ready[half])
    return ready


def read_metrics(path: Path | None) -> dict[str, Any]:
    """evaluation/metrics.json; nothing for a pair that was not evaluated, which its card then says."""
    if path is None:
        return {}
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: no metrics can be read ({error}); run python evaluate.py nla=<pair> first"
        ) from None
    if not isinstance(metrics, dict) or "fve" not in metrics:
        raise ConfigError(f"{path}: holds no fve; give the metrics.json that evaluate.py wrote")
    return metrics


def card(metadata: Metadata, half: str, metrics: Mapping[str, Any], licence: str) -> str:
    """The model card of one half."""
    purpose = (
        "reads an activation and writes what it says" if half == "verbalizer" else "turns that text back into a vector"
    )
    base = (
        metadata.base_model if metadata.base_revision is None else f"{metadata.base_model} at {metadata.base_revision}"
    )
    front = front_matter(metadata, half, metrics, licence)
    return (
        f"{front}\n# Natural Language Autoencoder: {half}\n\nOne half of a pair that {purpose}. "
        "Activations: the residual "
        f"stream after block {metadata.layer} (counted from 0) of {base}, width {metadata.d_model}.\n\n"
        f"## Quality\n\n{quality(metrics)}\n\n## Limits\n\n{LIMITS}\n\n"
        f"Licence: that of the base model ({licence}), whose terms hold for these weights.\n"
    )


def front_matter(metadata: Metadata, half: str, metrics: Mapping[str, Any], licence: str) -> str:
    """What the hub reads of a card; results as its `model-index` has them, from where `nla info` reads them back."""
    facts: dict[str, Any] = {
        "base_model": metadata.base_model, "license": licence, "library_name": "transformers", "tags": ["nla"],
    }  # fmt: skip
    if metrics:
        size = f"{metrics['n']} activations of {metrics['documents']} held-out documents"
        between = interval(metrics.get("fve_ci95"))
        dataset = f"{size}, 95 % interval {between}" if between else size
        result = {
            "task": {"type": "text-generation"},
            "dataset": {"name": dataset, "type": "held-out"},
            "metrics": [{"type": "fve", "name": "FVE", "value": round(float(metrics["fve"]), 4)}],
        }
        facts["model-index"] = [{"name": f"nla-{ENDINGS[half]}", "results": [result]}]
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=1000)}---\n"


def quality(metrics: Mapping[str, Any]) -> str:
    """FVE with its n, split and interval, and its controls."""
    if not metrics:
        return "Not evaluated."
    rows = [f"| explanations, greedy | **{metrics['fve']:.3f}** | {interval(metrics.get('fve_ci95'))} |"]
    for name, control in (metrics.get("controls") or {}).items():
        if isinstance(control, Mapping) and control.get("fve") is not None:
            between = interval(control.get("ci95"))
            rows.append(f"| control: {name.replace('_', ' ')} | {control['fve']:.3f} | {between} |")
    table = "\n".join(["| what | FVE | 95 % interval |", "|---|---|---|", *rows])
    return (
        f"{metrics['n']} activations of {metrics['documents']} held-out documents (test split, split by document); "
        f"malformed explanations count as orthogonal.\n\n{table}"
    )


def interval(bounds: Any) -> str:
    """`0.646 to 0.660`; empty if there is none, as for a single document."""
    return f"{bounds[0]:.3f} to {bounds[1]:.3f}" if isinstance(bounds, list | tuple) and len(bounds) == 2 else ""


def refuse_paths(folder: Path) -> None:
    """Raises ReleaseError if a text file contains a path of this machine."""
    places = {str(Path.home()), str(Path.cwd())} - {"/"}
    for path in sorted(folder.rglob("*")):
        if path.suffix in TEXT_FILES:
            text = path.read_text(encoding="utf-8", errors="replace")
            for local in places:
                if local in text:
                    raise ReleaseError(f"{path}: names a path of this machine ({local}): remove it before publishing")


def push(folders: Mapping[str, Path], name: str, private: bool) -> list[str]:
    """Both repositories made, then filled; their ids. Raises ReleaseError with the remedy."""
    from huggingface_hub import HfApi

    api, names = HfApi(), {half: f"{name}-{ENDINGS[half]}" for half in folders}
    try:
        for repository in names.values():
            api.create_repo(repository, private=private, exist_ok=True)
        for half, folder in folders.items():
            api.upload_folder(repo_id=names[half], folder_path=folder, commit_message="Upload from nla publish")
    except Exception as error:  # no token, no right, no network: many classes
        raise ReleaseError(f"{name}: cannot be pushed ({remedy(error, name)})") from error
    return list(names.values())


def base_licence(base_model: str) -> str:
    """The licence of the base model's card on the hub. Raises ConfigError if it cannot be fetched."""
    from huggingface_hub import HfApi

    try:
        card_data: Any = HfApi().model_info(base_model).card_data
        licence = card_data.get("license") if card_data is not None else None
    except Exception as error:  # offline, gated, unknown
        raise ConfigError(f"licence of {base_model} unknown ({remedy(error, base_model)}); give --licence") from None
    if not licence:
        raise ConfigError(f"{base_model} names no licence on the hub; give --licence")
    return str(licence)
