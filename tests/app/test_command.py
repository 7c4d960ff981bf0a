"""`nla app`: its mistakes, each in one line."""

import importlib.util
from pathlib import Path

import pytest

from nla.commands.cli import main


def test_without_gradio_it_says_what_to_install(
    saved_nla: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["app", str(saved_nla)]) == 2
    assert capsys.readouterr().err == "error: the live page needs Gradio: pip install 'nla[app]'\n"


def test_a_port_that_is_none(
    saved_nla: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert main(["app", str(saved_nla), "--port", "70000"]) == 2
    assert "--port 70000: must be 1 to 65535" in capsys.readouterr().err
