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
from nla.errors import NLAError
from nla.models.target import Target


def build_data(data: DataSettings, stage: StageData, target: Target, seed: int) -> NLADataModule:
    """The loader of a stage. Raises DataError where stored activations are not the target's."""
    source = build_source(data.source)
    plan = ReadingPlan(stage.positions_per_document, stage.min_context, data.max_tokens, seed)
    if isinstance(source, ShardSource):
        reader = ShardReader(source, target.layer, target.d_model)
    else:
        reader = DocumentReader(source, target.tokenizer, plan)
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


def build_source(node: Mapping[str, Any]) -> Source:
    """The source that a node names. Raises NLAError, also for a mistake that only the constructor finds."""
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        raise error.__cause__ if isinstance(error.__cause__, NLAError) else error from None
