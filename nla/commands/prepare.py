"""``nla prepare [experiment=<name>] corpus=<kind> [key=value ...]``: activations and explanations, stored in shards.

    nla prepare experiment=text corpus=files data.path=<texts> model.path=<model> teacher=anthropic teacher.model=<id>
    python train.py experiment=text data=shards data.path=prepared/text model.path=<model>

    nla prepare --new-model <model>     a config for a model that has none: its marker, norms and scale (new_model.py)

The same command continues where it stopped. Settings: ``conf/prepare.yaml``; what it writes: docs/guides/data.md.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import rich
import torch
import yaml
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from pydantic import Field, PositiveInt
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nla import files
from nla.config.check import model_depth, parse, plain_config
from nla.config.compose import compose
from nla.config.schema import HardwareSettings, LayerSettings, ModelSettings, Settings
from nla.config.targets import check_components
from nla.data.corpora import streamed
from nla.data.documents import ReadingPlan
from nla.data.files import check_fractions
from nla.data.prepare import Folder, Plan, explain_shards, read_corpus, write_released
from nla.data.prepare.activations import SPLIT_RULE
from nla.data.prepare.explanations import estimate
from nla.data.prepare.folder import Record
from nla.data.shards.format import Facts
from nla.data.shards.source import ShardSource
from nla.data.teachers import TargetTeacher, Teacher
from nla.errors import BudgetError, ConfigError, NLAError
from nla.files import locked
from nla.models.backbone import resolve
from nla.models.explanations import forbidden_in_explanations
from nla.models.pretrained.hub import cached_commit
from nla.models.pretrained.metadata import read_yaml
from nla.models.prompts import Templates, resolve_marker
from nla.models.target import Target
from nla.redact import redacted

SETTINGS = "prepare.yaml"
PATIENCE = timedelta(days=30)  # that processes wait for each other's shards


class Preparation(Settings):
    out: str
    layers: list[int] | None
    positions_per_document: PositiveInt
    min_context: int = Field(ge=0)
    max_tokens: PositiveInt
    fractions: dict[str, float]
    split_key: str
    documents_per_shard: PositiveInt
    max_documents: PositiveInt | None
    min_characters: int = Field(ge=0)
    max_characters: PositiveInt
    explain: list[str]
    released: bool


class PrepareSettings(Settings):
    name: str
    seed: int = Field(ge=0, lt=2**32)
    model: ModelSettings
    layer: LayerSettings
    hardware: HardwareSettings
    corpus: dict[str, Any]
    teacher: dict[str, Any] | None
    prepare: Preparation


def main(overrides: Sequence[str]) -> int:
    """Compose, check and prepare; the exit status. Raises NLAError."""
    if any(flag in overrides for flag in ("-h", "--help")):
        print(__doc__)
        return 0
    try:
        prepare(check_prepare(compose("prepare", overrides)))
    except KeyboardInterrupt:
        print("interrupted; the same command continues")
        return 130
    return 0


def check_prepare(cfg: DictConfig) -> PrepareSettings:
    """Everything that can be known without loading weights. Raises ConfigError, ModelError.

    What only training reads is left out, set or not.
    """
    nodes = {key: cfg[key] for key in PrepareSettings.model_fields}
    plain = {key: plain_config(node) if isinstance(node, DictConfig) else node for key, node in nodes.items()}
    settings = parse(PrepareSettings, {**plain, "teacher": plain["teacher"] or None})
    for group in ("corpus", "teacher"):
        node = getattr(settings, group)
        if node is not None and "_target_" not in node:
            raise ConfigError(f"{group}._target_ is not set: choose one of conf/{group}/, e.g. {group}=files")
        check_components(node, group)
    check_fractions(settings.prepare.fractions, "prepare.fractions")
    depth = model_depth(settings.model)
    settings.layer.block(depth)
    for layer in settings.prepare.layers or ():
        LayerSettings(index=layer, fraction=None).block(depth)
    return settings


def prepare(settings: PrepareSettings) -> Path:
    """Run a preparation to its end and return its folder. Raises NLAError; everything written so far stays valid."""
    how = settings.prepare
    path = Path(how.out)
    first = rank_zero_only.rank == 0  # by the launcher, before processes start
    corpus = streamed(build(settings.corpus, "corpus"))
    teacher: Teacher | None = None if settings.teacher is None else build(settings.teacher, "teacher")
    block = settings.layer.block(model_depth(settings.model))
    layers = sorted(set(how.layers or [block]))
    origin = made_by(settings, layers, corpus.version())
    with locked(path) if first else nullcontext():
        if first:
            record_settings(path / SETTINGS, origin, settings)
        fabric = start(settings.hardware)
        model = settings.model
        target = Target.from_pretrained(model.id, block, model.dtype, model.revision).to(fabric.device)
        if isinstance(teacher, TargetTeacher):
            teacher.share(target)
        folder = Folder(path, fingerprint(origin), layers)
        facts = Facts(
            base_model=model.id if not Path(model.id).is_dir() else Path(model.id).name,
            d_model=target.d_model,
            layer=block,
            corpus=corpus.name,
            positions_per_document=how.positions_per_document,
            base_revision=cached_commit(resolve(model.id), model.revision),
        )
        plan = Plan(
            ReadingPlan(how.positions_per_document, how.min_context, how.max_tokens, settings.seed),
            how.fractions, how.split_key, how.documents_per_shard, how.max_documents, how.min_characters,
            how.max_characters,
        )  # fmt: skip
        rank, ranks = fabric.global_rank, fabric.world_size
        with bar("reading", how.max_documents, rank == 0) as progress:
            count = read_corpus(corpus, target, plan, folder, facts, rank, ranks, progress)
        fabric.barrier()
        finished = teacher is None or explain(settings, teacher, folder, folder.records(count), target, rank, ranks)
        fabric.barrier()
        if rank == 0:
            about = {
                "base_model": facts.base_model, "base_revision": facts.base_revision, "d_model": target.d_model,
                "corpus": corpus.name, "corpus_version": corpus.version(), "teacher": getattr(teacher, "name", None),
            }  # fmt: skip
            manifest = folder.write_manifest(folder.records(count), corpus.skipped, about)
            tell(path, manifest)
            if how.released:
                source = ShardSource(str(path), how.fractions, how.split_key, 1)
                templates = Templates(**model.templates.model_dump())
                write_released(source, path / "released", target.tokenizer, templates, model.marker)
        fabric.barrier()
    if not finished:
        raise BudgetError(
            f"{path}: the teacher's budget is spent; the explained rows can be trained on, and the same command with a "
            "higher teacher.usd or teacher.tokens continues"
        )
    return path


def explain(
    settings: PrepareSettings,
    teacher: Teacher,
    folder: Folder,
    records: list[Record],
    target: Target,
    rank: int,
    ranks: int,
) -> bool:
    """Ask about the splits that need it; whether everything was asked."""
    splits = settings.prepare.explain
    if rank and not teacher.every_rank:
        return True
    marker = resolve_marker(target.tokenizer, settings.model.marker)
    template = settings.model.templates.reconstructor
    teacher.open(folder.path, forbidden_in_explanations(target.tokenizer, marker, template), rank)
    if rank == 0:
        todo = estimate(teacher, folder, records, splits)
        rich.print(
            f"{teacher.name}: {todo.rows} passages to explain, {todo.cached} replies are cached; about "
            f"{todo.input_tokens:,} tokens in, {todo.output_tokens:,} out: {todo.usd:.2f} USD"
        )
    here = (rank, ranks) if teacher.every_rank else (0, 1)
    total = sum(entry["rows"] for r in records for entry in r.of_layer(folder.layers[0]) if entry["split"] in splits)
    with bar("explaining", total // here[1], rank == 0) as progress:
        return explain_shards(teacher, folder, records, splits, *here, progress)


def start(hardware: HardwareSettings) -> Fabric:
    """The processes of this preparation, started by Lightning, torchrun or a cluster's launcher."""
    trainer = hardware.trainer
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    several = nodes > 1 or (torch.cuda.device_count() > 1 if devices in ("auto", -1) else devices not in (1, "1"))
    strategy = DDPStrategy(timeout=PATIENCE) if several else "auto"
    fabric = Fabric(accelerator=trainer["accelerator"], devices=devices, num_nodes=nodes, strategy=strategy)
    fabric.launch()
    return fabric


def build(node: dict[str, Any], key: str) -> Any:
    """The object of a config node. Raises NLAError, also for a mistake that only the constructor finds."""
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, NLAError):
            raise error.__cause__ from None
        if isinstance(error.__cause__, ImportError):
            raise ConfigError(
                f"{key}: {node['_target_']} needs a package that is not installed ({error.__cause__})"
            ) from error
        raise


def made_by(settings: PrepareSettings, layers: list[int], version: str) -> dict[str, Any]:
    """Everything that the activations depend on: not teacher, hardware, folder, or how far the corpus is read."""
    free = ("out", "layers", "explain", "released", "max_documents")
    return {
        "model": settings.model.model_dump(include={"id", "revision", "dtype"}),
        "layers": layers,
        "seed": settings.seed,
        "corpus": redacted(settings.corpus),
        "corpus_version": version,
        "split_rule": SPLIT_RULE,
        "prepare": settings.prepare.model_dump(exclude=set(free)),
    }


def fingerprint(origin: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(origin, sort_keys=True).encode(), digest_size=16).hexdigest()


def record_settings(path: Path, origin: dict[str, Any], settings: PrepareSettings) -> None:
    """Write the settings, or refuse a folder that was prepared by others. Raises ConfigError."""
    if path.is_file():
        recorded = read_yaml(path).get("made_by")
        for key, value in origin.items():
            before = recorded.get(key) if isinstance(recorded, dict) else None
            if before != value:
                raise ConfigError(
                    f"{path.parent} was prepared with another {key} ({before}, now {value}): choose "
                    "prepare.out=<another>, or remove the folder"
                )
    whole = {"made_by": origin, "settings": redacted(settings.model_dump())}
    files.write_text(path, yaml.safe_dump(whole, sort_keys=False, allow_unicode=True))


@contextmanager
def bar(label: str, total: int | None, shown: bool) -> Iterator[Callable[[int], Any]]:
    """A progress bar with the time left, if the end is known."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not shown or not rich.get_console().is_terminal) as progress:
        task = progress.add_task(label, total=total)
        yield lambda rows: progress.advance(task, rows)


def tell(path: Path, manifest: dict[str, Any]) -> None:
    rich.print(
        f"{path}: {sum(manifest['documents'].values())} documents, layers {manifest['layers']}, rows {manifest['rows']}"
    )
    for name in ("explanations", "skipped"):
        if manifest[name]:
            rich.print(f"{name}: {manifest[name]}")
    if manifest["dropped"]:
        rich.print(f"dropped: {manifest['dropped']} positions without a sound activation")
    rich.print(f"train on it: python train.py data=shards data.path={os.path.relpath(path)}")
