"""From a data config to its loader."""

from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from nla.config.schema import DataSettings, StageData
from nla.data.datamodule import NLADataModule
from nla.data.document_rows import DocumentReader
from nla.data.documents import ReadingPlan
from nla.data.shards.reader import ShardReader, agreement
from nla.data.shards.source import ShardSource
from nla.data.source import Source
from nla.data.warm_start import SourceTexts, TaughtTexts, WarmStartTexts
from nla.errors import ConfigError, NLAError
from nla.models.target import Target


def build_data(data: DataSettings, stage: StageData, target: Target, seed: int) -> NLADataModule:
    """The loader of a stage.

    Raises DataError where stored activations are not the target's, and ConfigError for a teacher beside them.
    """
    source = build_source(data.source)
    if isinstance(source, ShardSource) and data.teacher is not None:
        raise ConfigError(
            "data.teacher: data=shards has its texts already; leave the teacher out, or use data=text_self"
        )
    if isinstance(source, ShardSource) and stage.early:
        raise ConfigError(
            f"stage data.early={stage.early}: stored activations have their positions already; set data.early=0"
        )
    plan = ReadingPlan(stage.positions_per_document, stage.min_context, data.max_tokens, seed, stage.early)
    if isinstance(source, ShardSource):
        reader = ShardReader(source, target.layer, target.d_model)
    else:
        reader = DocumentReader(source, target.tokenizer, plan, warm_start_texts(data, source, target))
    module = NLADataModule(
        reader,
        split=stage.split,
        explanations=stage.explanations,
        batch_size=stage.batch_size,
        validation_documents=data.validation_documents,
        seed=seed,
        num_workers=data.num_workers,
    )
    if isinstance(source, ShardSource):
        agreement(module.rows(stage.split), target, source.path)
    return module


def warm_start_texts(data: DataSettings, source: Source, target: Target) -> WarmStartTexts:
    """The source's own, or those of `data.teacher`, which reads with the stage's target if that is its model."""
    if data.teacher is None:
        return SourceTexts(source)
    teacher = instantiate(data.teacher, _convert_="all")
    teacher.share(target)
    return TaughtTexts(teacher)


def build_source(node: Mapping[str, Any]) -> Source:
    """The source that a node names. Raises NLAError, also for a mistake that only the constructor finds."""
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        raise error.__cause__ if isinstance(error.__cause__, NLAError) else error from None
