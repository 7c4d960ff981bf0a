"""``nla pretrain [key=value ...]``: make a small target from text. Its settings are in ``conf/pretrain.yaml``.

nla pretrain out=<folder>                                       the target that is shipped (nla/packaged/world)
nla pretrain pretraining=text data=text_pretrained data.path=<texts> out=<folder>
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from pydantic import Field, NonNegativeFloat

from nla.config.check import check_data, parse, plain_config
from nla.config.compose import compose
from nla.config.schema import DataSettings, ModelSettings, Settings
from nla.data.build import build_source
from nla.errors import ConfigError
from nla.pretraining.lessons import Lessons
from nla.pretraining.loop import Architecture, Recipe, pretrain
from nla.pretraining.tokenizer import train_tokenizer

PAST_THE_END = 10**6  # characters


class PretrainSettings(Settings):
    out: str
    data: DataSettings
    model: ModelSettings
    lesson_shares: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat]
    tokenizer_documents: int = Field(gt=0)
    architecture: Architecture
    recipe: Recipe


def main(overrides: Sequence[str]) -> int:
    """Compose, check and train; the exit status. Raises NLAError."""
    if any(flag in overrides for flag in ("-h", "--help")):
        print(__doc__)
        return 0
    settings = parse(PretrainSettings, plain_config(compose("pretrain", overrides)))
    check_data(settings.data)
    folder = Path(settings.out)
    if (folder / "config.json").exists():
        raise ConfigError(f"out={folder}: this folder already holds a model; choose another folder or remove it")
    source = build_source(settings.data.source)
    sample = list(islice(source.documents("pretrain"), settings.tokenizer_documents))
    described = [source.explanation(document, PAST_THE_END, 1) for document in sample[: len(sample) // 4]]
    texts = [document.text for document in sample] + [text for text in described if text]
    tokenizer = train_tokenizer(texts, settings.architecture.vocab, getattr(source, "phrases", ()))
    templates = settings.model.templates
    lessons = Lessons(
        source, tokenizer, templates.verbalizer, templates.reconstructor, settings.lesson_shares, settings.recipe.seed
    )
    pretrain(lessons, settings.architecture, settings.recipe, folder)
    return 0
