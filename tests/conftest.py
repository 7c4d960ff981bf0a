"""Fixtures: tiny models and pairs. Shapes are checked in every signature."""

from jaxtyping import install_import_hook

# before anything imports nla; an int passes for a float
install_import_hook("nla", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import functools  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from support import parallel_workers  # noqa: E402
from support.models import (  # noqa: E402
    FAMILIES,
    MARKER,
    TEMPLATES,
    make_model,
    make_tokenizer,
)
from transformers import (  # noqa: E402
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from nla.models.pair import NLA  # noqa: E402
from nla.models.prompts import Templates  # noqa: E402
from nla.models.target import Target  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One saved tiny model with tokenizer per family."""
    root = tmp_path_factory.mktemp("models")
    folders = {}
    for family in FAMILIES:
        folder = root / family
        make_model(family).save_pretrained(folder)
        make_tokenizer(bos=family.startswith("gemma")).save_pretrained(folder)
        folders[family] = str(folder)
    return folders


@pytest.fixture(scope="session", params=FAMILIES)
def family_folder(request: pytest.FixtureRequest, model_folders: dict[str, str]) -> str:
    return model_folders[request.param]


@pytest.fixture(scope="session")
def tiny_folder(model_folders: dict[str, str]) -> str:
    """The folder of a tiny random Qwen3, three blocks, width 32."""
    return model_folders["qwen3"]


@pytest.fixture(scope="session")
def tokenizer(tiny_folder: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture(scope="session")
def templates() -> Templates:
    return TEMPLATES


@pytest.fixture(scope="session")
def target(tiny_folder: str) -> Target:
    return Target.from_pretrained(tiny_folder, layer=1)


@pytest.fixture
def nla(tiny_folder: str) -> NLA:
    """A fresh untrained pair on the tiny model, layer 1."""
    return NLA.from_target(tiny_folder, 1, TEMPLATES, MARKER)


@pytest.fixture
def saved_nla(nla: NLA, tmp_path: Path) -> Path:
    nla.save_pretrained(tmp_path / "nla")
    return tmp_path / "nla"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def warm(tiny_folder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pair on the tiny model that writes well-formed explanations."""
    from support.runs import train, warm_pair

    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("warm")
        patch.chdir(folder)
        train(*warm_pair(tiny_folder))
        return str(folder / "runs/warm/nla")


@pytest.fixture(scope="module")
def work(tiny_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny pair that is warm enough to write well-formed explanations of different lengths."""
    folder = tmp_path_factory.mktemp("parallel")
    pair = NLA.from_target(tiny_folder, 1, TEMPLATES, MARKER)
    target = Target.from_pretrained(tiny_folder, 1)
    optimizer = functools.partial(torch.optim.AdamW, lr=1e-2)
    stage = parallel_workers.stage_of("verbalizer", pair, target, steps=50, optimizer=optimizer)
    trainer = parallel_workers.trainer_of(1, "one", folder, max_steps=50, limit_val_batches=0)
    trainer.fit(stage, parallel_workers.data_of(target, "warm_start"))
    pair.save_pretrained(folder / "pair")
    return folder
