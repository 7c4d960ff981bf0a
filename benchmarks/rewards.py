"""What each reward and variant does on the embedded world: one warm start, the same joint training, one key changed.

    python benchmarks/rewards.py --pair runs/world/stages/reconstructor/nla

Each variant is a run `runs/<prefix>_<variant>` through `train.py` and `evaluate.py`, on one thread; a finished one is
not run again, so the same command continues. Writes `rewards.json`, a table in Markdown and a plot of FVE by prefix
length. About three minutes for each variant at the default length.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from timing import RESULTS, ROOT, command, machine

VARIANTS: dict[str, list[str]] = {
    "neg_error": [],
    "neg_log_error": ["reward=neg_log_error"],
    "length_0.001": ["reward=length_penalty"],
    "length_0.005": ["reward=length_penalty", "reward.per_token=0.005"],
    "near_cap": ["reward=near_cap", "reward.near_cap_tokens=32"],
    "random_prefix": ["reward=random_prefix"],
    "without_quotes": ["reward=without_quotes"],
    "no_repetition": ["reward=no_repetition"],
    "kl_linear_to_0": ["stage.joint.kl.schedule=linear"],
    "kl_cosine_to_0": ["stage.joint.kl.schedule=cosine"],
    "centered": ["reward=centered"],
    "leave_one_out": ["reward=leave_one_out"],
    "kl_k2": ["stage.joint.kl.kind=k2", "stage.joint.kl.coefficient=0.05"],
    "two_reconstructor_updates": ["stage.joint.reconstructor_updates=2"],
}
# what every variant starts from: the published reward and KL, not those chosen for the world
USUAL = {"reward": "neg_error", "stage.joint.kl.kind": "k3", "stage.joint.kl.coefficient": "0.02"}
COLUMNS = {
    "FVE": lambda m: f"{m['fve']:.3f} ({m['fve_ci95'][0]:.3f} to {m['fve_ci95'][1]:.3f})" if m["fve_ci95"] else "-",
    "frozen reader": lambda m: number(m["frozen_reconstructor"]["fve"]),
    "true": lambda m: number((m["claims"] or {}).get("true_share")),
    "recall": lambda m: number((m["claims"] or {}).get("recall")),
    "tokens": lambda m: number(m["explanation"]["tokens_mean"], 1),
    "repeated": lambda m: number(m["explanation"]["repeated_share"]),
    "without quotes": lambda m: number(m["without_quotes"]["fve"]),
    "quoted": lambda m: number(m["without_quotes"]["quoted_share"]),
    "well-formed": lambda m: number(m["explanation"]["well_formed"]),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", type=Path, default=ROOT / "runs/world/stages/reconstructor/nla", help="warm start")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=80, help="of joint training")
    parser.add_argument("--documents", type=int, default=256, help="of the test split, two positions each")
    parser.add_argument("--prefixes", nargs="*", type=int, default=[1, 2, 4, 8, 12, 16, 24, 32, 48])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of the runs")
    parser.add_argument("--prefix", default="reward", help="of the runs' names")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--overrides", nargs="*", default=[], help="of each training run, such as experiment=text ...")
    parser.add_argument("--quick", action="store_true", help="tiny runs, to see that it works; no figure to be quoted")
    arguments = parser.parse_args()
    if not (arguments.pair / "reconstructor").is_dir():
        print(f"--pair {arguments.pair}: no pair there; make one with python train.py", file=sys.stderr)
        return 2
    evaluations: dict[str, dict[str, Any]] = {}
    for name in arguments.variants:
        evaluations[name] = measure(name, arguments)
        write(evaluations, arguments)
    print(table(evaluations))
    return 0


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one variant, unless that was done; the parts of its metrics.json that are compared."""
    run: Path = arguments.runs.resolve() / f"{arguments.prefix}_{name}"
    metrics = run / "evaluation" / "metrics.json"
    if not metrics.is_file():
        small = ["experiment=world_smoke"] if arguments.quick else []
        interval = f"stage.joint.trainer.val_check_interval={arguments.steps}"
        start = [f"nla={arguments.pair.resolve()}", "stages=[joint]", f"stage.joint.steps={arguments.steps}", interval]
        given = {override.partition("=")[0] for override in (*arguments.overrides, *VARIANTS[name])}
        usual = [f"{key}={value}" for key, value in USUAL.items() if key not in given]
        changes = [*usual, *arguments.overrides, *VARIANTS[name]]
        call("train.py", *small, f"name={run.name}", f"run_dir={run}", *start, *changes)
        lengths = f"evaluation.prefix_tokens=[{','.join(map(str, arguments.prefixes))}]"
        left_out = ["evaluation.samples=0", "evaluation.neighbour_documents=0", "evaluation.max_new_tokens=64"]
        warm = run / "stages" / "reconstructor"
        if not warm.exists():  # where evaluate.py looks for the warm start
            warm.mkdir()
            (warm / "nla").symlink_to(arguments.pair.resolve())
        call("evaluate.py", f"nla={run / 'nla'}", f"evaluation.documents={arguments.documents}", lengths, *left_out)
    keys = ("fve", "fve_ci95", "fve_warm_start", "frozen_reconstructor", "prefixes", "without_quotes")
    keys += ("explanation", "n")
    whole = json.loads(metrics.read_text(encoding="utf-8"))
    claims = whole["claims"] and {
        key: whole["claims"][key] for key in ("n", "true_share", "unrevealed_share", "recall")
    }
    return {"overrides": VARIANTS[name], **{key: whole[key] for key in keys}, "claims": claims}


def call(program: str, *overrides: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run([sys.executable, str(ROOT / program), *overrides], check=True, cwd=ROOT, env=environment)


def write(evaluations: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> None:
    """<prefix>s.json, .md and .png, such as rewards.json, of what is there so far."""
    folder: Path = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "benchmark": f"{arguments.prefix}s",
        "command": command(Path(sys.argv[0]).stem),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "quick": arguments.quick,
        "steps": arguments.steps,
        "variants": evaluations,
    }
    name = f"{arguments.prefix}s"
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(table(evaluations), encoding="utf-8")
    if arguments.prefixes:
        plot(evaluations, folder / f"{name}.png")


def table(evaluations: dict[str, dict[str, Any]]) -> str:
    """One line per variant; below it FVE by prefix length."""
    lines = [f"| variant | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, metrics in evaluations.items():
        lines.append(f"| {name} | {' | '.join(cell(metrics) for cell in COLUMNS.values())} |")
    lengths = [str(prefix["tokens"]) for prefix in next(iter(evaluations.values()))["prefixes"]]
    if not lengths:
        return "\n".join(lines) + "\n"
    lines += ["", f"| FVE of the first tokens | {' | '.join(lengths)} |", "|---" * (len(lengths) + 1) + "|"]
    for name, metrics in evaluations.items():
        lines.append(f"| {name} | {' | '.join(number(part['fve']) for part in metrics['prefixes'])} |")
    return "\n".join(lines) + "\n"


def number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def plot(evaluations: dict[str, dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, metrics) in enumerate(evaluations.items()):
        places, fve = zip(*((prefix["tokens"], prefix["fve"]) for prefix in metrics["prefixes"]))
        style = "-" if number < 10 else "--"  # there are ten colours
        axes.plot(places, fve, style, marker=".", label=name)
    axes.axhline(0, color="0.8", linewidth=1)
    axes.set_xlabel("first tokens of the explanation that the reconstructor reads")
    axes.set_ylabel("FVE on held-out documents")
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
