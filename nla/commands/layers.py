"""`nla layers <model> <texts>`: which layer to explain, measured in minutes, before any training."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from nla import files
from nla.commands.new_model import TEMPLATES
from nla.data.documents import ReadingPlan
from nla.data.teachers import TargetTeacher
from nla.data.text import TextSource
from nla.errors import ConfigError
from nla.evaluation.layers import SHARES, LayerSurvey, survey
from nla.models.backbone import usable_device
from nla.models.target import Target

CHUNKS = 8  # of each document, evenly spaced


def main(arguments: Sequence[str]) -> int:
    """Survey the model, print the table, write layers.json and layers.png; the exit status. Raises NLAError."""
    parser = argparse.ArgumentParser(prog="nla layers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="folder, GGUF file, hub id, or smollm2")
    parser.add_argument("texts", help="folder of UTF-8 files, or a Parquet or JSONL file with a column text")
    parser.add_argument("--positions", type=int, default=3000, help="activations to read in all (default 3000)")
    parser.add_argument("--per-document", type=int, default=6, help="positions of a document (default 6)")
    parser.add_argument("--id-column", default=None, help="rows of one document share its value")
    parser.add_argument("--out", type=Path, default=Path("layers"), help="folder of the results (default layers)")
    parser.add_argument("--dtype", default="float32", help="float32 (default), bfloat16, float16, nf4")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, mps")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for name, least in (("positions", 20), ("per_document", 1)):
        if getattr(options, name) < least:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be at least {least}")
    device = usable_device(options.device, "--device")
    fractions = {"warm_start": SHARES["warm_start"], "joint": 0.0, **{k: SHARES[k] for k in ("validation", "test")}}
    source = TextSource(options.texts, fractions, "layers", "text", None, options.id_column, 100, 600, CHUNKS, None)
    target = Target.from_pretrained(options.model, 0, options.dtype).to(device)
    teacher = TargetTeacher(options.model, about=4, quoted=6, expected=3, continued=8)
    plan = ReadingPlan(options.per_document, 3, 512, options.seed)
    with Progress(console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, object] = {}

        def progress(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase)
            bars.update(tasks[phase], completed=done, total=total)  # pyright: ignore[reportArgumentType]

        result = survey(
            target,
            source,
            teacher,
            TEMPLATES.reconstructor,
            plan,
            options.positions,
            seed=options.seed,
            progress=progress,
        )
    options.out.mkdir(parents=True, exist_ok=True)
    about = {"model": options.model, "texts": options.texts, "seed": options.seed}
    files.write_text(options.out / "layers.json", json.dumps({**about, **result.to_json()}, indent=1) + "\n")
    plot(result, options.out / "layers.png", options.model)
    show(result, options.model, Console(highlight=False))
    print(f"Written to {options.out}/layers.json and layers.png. Use it: layer.index={result.proposed}")
    return 0


def show(result: LayerSurvey, model: str, console: Console) -> None:
    title = f"{model}: {result.positions} positions; FVE of a ridge on {result.held_out} held-out ones, no training"
    table = Table(title=title, title_justify="left")
    for name in ("block", "median norm", "mean share", "top 2 dims", "eff. dim.", "explanation", "95%", "next words",
                 "last words"):  # fmt: skip
        table.add_column(name, justify="right")
    for block in result.blocks:
        interval = block.fve["explanation"]["ci95"]
        table.add_row(
            str(block.layer), f"{block.median_norm:.4g}", f"{block.mean_share:.2f}", f"{block.top2_share:.2f}",
            f"{block.effective_dimension:.1f}", f"{block.fve['explanation']['fve']:.3f}",
            "-" if interval is None else f"{interval[0]:.3f}–{interval[1]:.3f}",
            f"{block.fve['next_words']['fve']:.3f}", f"{block.fve['last_words']['fve']:.3f}",
            style="bold" if block.layer == result.proposed else None,
        )  # fmt: skip
    console.print(table)


def plot(result: LayerSurvey, path: Path, model: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    layers = [block.layer for block in result.blocks]
    for view in result.blocks[0].fve:
        axes.plot(layers, [block.fve[view]["fve"] for block in result.blocks], label=view.replace("_", " "))
    bounds = [block.fve["explanation"]["ci95"] or [float("nan")] * 2 for block in result.blocks]
    axes.fill_between(layers, [b[0] for b in bounds], [b[1] for b in bounds], alpha=0.2)
    axes.axvline(result.proposed, linestyle=":", color="black")
    axes.set(xlabel="block", ylabel="FVE of a ridge, held-out documents", title=model)
    axes.legend()
    with files.new_file(path) as scratch:
        figure.savefig(scratch, format="png", dpi=120)
