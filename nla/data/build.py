"""From a data config to its loader."""

from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from nla.config.schema import DataSettings
from nla.data.datamodule import NLADataModule
from nla.data.shards.datamodule import ShardDataModule
from nla.data.shards.source import ShardSource
from nla.data.source import Source
from nla.errors import NLAError
from nla.models.target import Target


def build_data(data: DataSettings, target: Target, **options: Any) -> NLADataModule:
    """The loader of a data config; `options` (split, batch_size, seed ...) go before its own settings."""
    reading = data.model_dump(exclude={"path", "source"}) | options
    source = build_source(data.source)
    if isinstance(source, ShardSource):
        return ShardDataModule(source, target, **reading)
    return NLADataModule(source, target.tokenizer, **reading)


def build_source(node: Mapping[str, Any]) -> Source:
    """The source that a node names. Raises NLAError, also for a mistake that only the constructor finds."""
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        raise error.__cause__ if isinstance(error.__cause__, NLAError) else error from None
