"""What the fault tests share."""

from pathlib import Path

import pytest
from lives import train, warm_pair


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def warm(tiny_folder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pair on the tiny model that writes well-formed explanations."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("warm")
        patch.chdir(folder)
        train(*warm_pair(tiny_folder))
        return str(folder / "runs/warm/nla")
