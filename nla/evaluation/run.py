"""What evaluate.py does with a loaded pair, target and data: find the warm start, evaluate, write, print."""

import importlib.metadata
import platform
import shlex
import sys
from pathlib import Path

import rich
from rich.console import Console

from nla.evaluation.activations import EvaluationData
from nla.evaluation.evaluation import Evaluation, evaluate
from nla.evaluation.figures import plot_tokens_read
from nla.evaluation.files import write_metrics, write_samples
from nla.evaluation.page import read_texts, write_page
from nla.evaluation.ranks import is_first
from nla.evaluation.settings import EvaluationSettings
from nla.evaluation.table import show
from nla.models.pair import HALVES, NLA
from nla.models.target import Target

WARM_START = Path("stages", "reconstructor", "nla")
PACKAGES = ("nla", "torch", "transformers", "lightning", "peft", "numpy", "pyarrow")


def run(
    nla: NLA,
    target: Target,
    data: EvaluationData,
    output: str | Path,
    *,
    settings: EvaluationSettings,
    seed: int = 0,
    run_folder: str | Path | None = None,
    pair: str | None = None,
    command: str | None = None,
    dtype: str = "float32",
    examples: int = 5,
    console: Console | None = None,
) -> Evaluation:
    """Evaluate `nla`, write metrics.json, samples.parquet and the page to `output`, and print the tables.

    Args:
        run_folder: the run that made the pair, whose warm start is evaluated too; None: no such run.
        pair: its name, for the page.
        command: recorded in metrics.json; None: this process's own command line.
        dtype: of the weights of all pairs; recorded.
        examples: explanations to print.
    """
    output = Path(output)
    warm_start = load_warm_start(run_folder, nla, target, dtype)
    result = evaluate(nla, target, data, settings, seed=seed, warm_start=warm_start)
    result.metrics.update(command=command or command_line(), dtype=dtype, versions=versions())
    with result.subject.clock("report"):
        report = read_texts(result.subject, Path(run_folder).name if run_folder else "", settings.report_texts)
    result.metrics["seconds"]["report"] = result.subject.clock.seconds["report"]
    if not is_first():
        return result
    write_samples(result, output)
    plot_tokens_read(result.metrics, output)
    if report is not None:
        write_page(report, result.metrics, output, Path(run_folder) if run_folder else None)
    write_metrics(result.metrics, output)  # last: its presence says that the evaluation is complete
    console = console or rich.get_console()
    show(result, console, examples)
    console.print(f"\nwritten to {output}", markup=False)
    return result


def load_warm_start(run_folder: str | Path | None, nla: NLA, target: Target, dtype: str = "float32") -> NLA | str:
    """The pair that `run_folder`'s reconstructor stage left, or why there is none.

    Adapters use the target's weights, as those of `nla` do if it has any.
    """
    if nla.stage in ("verbalizer", "reconstructor"):
        return f"the pair itself comes from a warm start (stage {nla.stage})"
    if run_folder is None:
        return "no run beside the pair"
    folder = Path(run_folder) / WARM_START
    if not all((folder / half).is_dir() for half in HALVES):
        return f"no pair in {WARM_START.as_posix()} of the run"
    return NLA.from_pretrained(folder, dtype=dtype, adapter="saved", base=target.model).to(nla.device)


def command_line() -> str:
    """`python evaluate.py nla=...`, without the program's folder."""
    return shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])


def versions() -> dict[str, str | None]:
    """Of Python and of the packages that the numbers depend on; None: not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found
