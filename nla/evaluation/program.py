"""The program behind evaluate.py: a saved pair, or every job of a sweep, on its device and in its dtype."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rich
import torch
from hydra.utils import instantiate
from lightning.fabric import Fabric
from lightning.pytorch import seed_everything

from nla.config.check import check_data, parse
from nla.config.renamed import CONFIG, read_recorded
from nla.config.run_folder import is_pair, run_folder
from nla.config.schema import DataSettings, EvaluateSettings
from nla.config.trainer import check_ranks
from nla.data.build import build_source
from nla.data.documents import ReadingPlan
from nla.errors import ConfigError
from nla.evaluation import run as run_evaluation
from nla.evaluation.activations import EvaluationData
from nla.evaluation.ranks import is_first
from nla.evaluation.sweep import METRICS, is_sweep, job_folders, summarize
from nla.models.backbone import DTYPES, QUANTIZED, usable_device
from nla.models.pair import NLA
from nla.models.target import Target

PRECISIONS = {"32": "float32", "bf16": "bfloat16", "16": "float16"}  # nothing is trained, so no fp32 master weights


def evaluate(settings: EvaluateSettings) -> Path:
    """Evaluate a saved pair, or every job of a sweep with a summary; returns the folder written. Raises NLAError.

    Jobs already evaluated are skipped.
    """
    sweep = Path(settings.nla)
    if not is_sweep(sweep):
        return evaluate_pair(settings)
    for job in job_folders(sweep):
        if is_pair(job / "nla") and not (job / METRICS).is_file():
            evaluate_pair(settings.changed(nla=str(job / "nla"), output=None))
    if is_first():
        summarize(sweep, rich.get_console())
    return sweep


def evaluate_pair(settings: EvaluateSettings) -> Path:
    """Write metrics.json and samples.parquet of one pair, print the tables, return their folder."""
    data = settings.data or recorded_data(Path(settings.nla))
    seed_everything(settings.seed, workers=True, verbose=False)
    device = evaluation_device(settings.hardware.trainer)
    run = run_folder(Path(settings.nla))
    dtype = settings.dtype or evaluation_dtype(run, settings.hardware.trainer)
    target = Target.of_pair(settings.nla, dtype).to(device)
    pair = NLA.from_pretrained(settings.nla, dtype=dtype, adapter="saved", base=target.model).to(device)
    output = Path(settings.output) if settings.output else default_output(Path(settings.nla), run)
    how = instantiate(settings.evaluation, _convert_="all")
    if how.judge is not None:
        how.judge.open(output)
    plan = ReadingPlan(data.positions_per_document, data.min_context, data.max_tokens, settings.seed)
    test = EvaluationData(build_source(data.source), plan)
    run_evaluation(
        pair, target, test, output, settings=how, seed=settings.seed, run_folder=run, dtype=dtype, pair=settings.nla
    )
    return output


def evaluation_dtype(run: Path | None, trainer: Mapping[str, Any]) -> str:
    """`model.dtype` of the run that made the pair; for a pair from elsewhere the type in which `hardware` computes.

    Raises ConfigError.
    """
    if run is not None:
        recorded = read_recorded(run).get("model")
        dtype = recorded.get("dtype") if isinstance(recorded, dict) else None
        if dtype in (*DTYPES, QUANTIZED):
            return str(dtype)
    precision = str(trainer.get("precision", "32-true")).partition("-")[0]
    if precision not in PRECISIONS:
        raise ConfigError(
            f"hardware.trainer.precision={trainer.get('precision')}: is not a type of weights; give dtype=bfloat16, "
            "or another of float32, float16, nf4"
        )
    return PRECISIONS[precision]


def evaluation_device(trainer: Mapping[str, Any]) -> torch.device:
    """This rank's device by `hardware.trainer`; connects the ranks if there are several.

    Raises ConfigError if this machine has no such device, or if the number of ranks is not the config's.
    """
    accelerator = trainer["accelerator"]
    device = usable_device(accelerator, "hardware.trainer.accelerator", "use hardware=cpu")
    check_ranks(trainer)
    if trainer["devices"] == trainer["num_nodes"] == 1:
        return device
    nodes: int = trainer["num_nodes"]
    fabric = Fabric(accelerator=accelerator, devices=trainer["devices"], num_nodes=nodes, strategy="ddp")
    fabric.launch()
    return fabric.device


def default_output(pair: Path, run: Path | None) -> Path:
    """`evaluation/` of the run; of the stage, for a pair that a stage left."""
    parent = pair.resolve().parent
    return Path(os.path.relpath(parent if run and parent.parent.name == "stages" else run or Path())) / "evaluation"


def recorded_data(pair: Path) -> DataSettings:
    """The data config of the run that made the pair. It came with a checkpoint: it may name nothing but our classes."""
    run = run_folder(pair)
    if run is None:
        raise ConfigError(f"nla={pair}: no run's config.yaml beside the pair; choose the data: data=<name>")
    data = read_recorded(run).get("data")
    if not isinstance(data, dict):
        raise ConfigError(f"{run / CONFIG}: has no data section; choose the data: data=<name>")
    settings = parse(DataSettings, data)
    check_data(settings, trusted=False)
    return settings
