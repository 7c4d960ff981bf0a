"""Fault 48: the jobs of a sweep do not take each other along."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from rich.console import Console

from nla.config.compose import compose, config_folder
from nla.config.launch import launch, refuse_written
from nla.config.sweeps import JOBS, Job, combinations, refuse_secrets, run_jobs
from nla.errors import ConfigError
from nla.evaluation.sweep import summarize

PROGRAM = """
    import os, signal, sys, time
    from pathlib import Path
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    folder = Path(given["run_dir"].strip('"'))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").touch()
    if given["how"] == "killed" and not Path("mended").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    if given["how"] == "waits":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        (folder / "ready").touch()
        time.sleep(60)
    if given["how"].startswith("fails"):
        sys.exit(int(given["how"][-1]))
    (folder / "done").touch()
"""


@pytest.fixture
def program(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    path = here / "train.py"
    path.write_text(textwrap.dedent(PROGRAM))
    monkeypatch.setattr(sys, "argv", [str(path), "-m"])
    yield path
    for number, handler in handlers.items():
        signal.signal(number, handler)


def jobs(*hows: str) -> list[Job]:
    return [Job((f"how={how}",), Path("runs/w/sweep", f"how={how}")) for how in hows]


def statuses() -> dict[str, str]:
    return {row["job"]: row["status"] for row in json.loads(Path("runs/w/sweep", JOBS).read_text())}


def test_one_job_fails_one_is_killed_and_the_others_finish(program: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Case 48: the summary lists every status, the exit status says so, and a failed job is run again alone."""
    assert run_jobs(jobs("a", "fails1", "killed", "b")) == 1
    assert Path("runs/w/sweep/how=a/done").exists() and Path("runs/w/sweep/how=b/done").exists()
    expected = {"how=a": "done", "how=fails1": "failed (status 1)", "how=killed": "killed (SIGKILL)", "how=b": "done"}
    assert statuses() == expected
    shown = capfd.readouterr().out
    assert "2 of 4 jobs done" in shown
    [again] = [line.split("again: ")[1] for line in shown.splitlines() if "killed (SIGKILL)" in line]
    assert again == json.loads(Path("runs/w/sweep", JOBS).read_text())[2]["command"]
    Path("mended").touch()
    arguments = shlex.split(again)
    assert subprocess.run([sys.executable, *arguments[1:]], check=False).returncode == 0
    assert Path("runs/w/sweep/how=killed/done").exists()

    rows = {row["job"]: row["status"] for row in summarize(Path("runs/w/sweep"), Console(quiet=True))}
    assert rows["how=fails1"] == "failed (status 1)" and rows["how=a"] == "done"


@pytest.mark.parametrize(("hows", "code"), [(("a", "b"), 0), (("a", "fails2"), 2), (("fails2", "fails1"), 1)])
def test_the_exit_status_of_a_sweep(hows: tuple[str, ...], code: int, program: Path) -> None:
    """Case 48: 0 only where every job is done; 2 where nothing but a person's mistakes failed."""
    assert run_jobs(jobs(*hows)) == code


def test_a_signal_stops_the_running_job_and_the_sweep(program: Path) -> None:
    """Case 48: the job gets the signal too, and what was not started says so."""
    ready = Path("runs/w/sweep/how=waits/ready")

    def terminate() -> None:
        while not ready.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    thread.start()
    assert run_jobs(jobs("waits", "a")) == 143
    thread.join()
    assert statuses() == {"how=waits": "stopped (SIGTERM)", "how=a": "not started"}


def test_combinations_are_those_of_hydra(here: Path) -> None:
    """Case 48: every value of every key, the last fastest; a glob stands for the options of its group."""
    (here / "layer").mkdir()
    for name in ("early", "late", "middle"):
        (here / "layer" / f"{name}.yaml").touch()
    parsed = OverridesParser.create().parse_overrides(["seed=1,2", "name=x", "layer=glob(*e*)", "a=range(0,2)"])
    found = list(combinations(parsed, here))
    assert len(found) == 2 * 3 * 2
    assert found[:2] == [("seed=1", "name=x", "layer=early", f"a={value}") for value in (0, 1)]


@pytest.mark.parametrize("override", ["+logger.wandb.api_key=abc", "name=hf_abcdefghijklmnopqrstuvwxyz"])
def test_a_secret_in_a_sweep_is_refused_before_anything_is_written(override: str, here: Path) -> None:
    """Case 41 for sweeps: overrides become names of folders."""
    with pytest.raises(ConfigError, match="would be written to disk"):
        refuse_secrets(OverridesParser.create().parse_overrides(["seed=1,2", override]))
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "refused"), [("hf_abcdefghijklmnopqrstuvwxyz", True), ("${oc.env:WANDB_API_KEY}", False)]
)
def test_a_secret_in_an_own_config_is_refused_where_hydra_would_write_it(
    key: str, refused: bool, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Case 41 under submitit: its launcher writes multirun.yaml and pickles the job; a reference is no secret."""
    shutil.copytree(config_folder(), here / "conf")
    (here / "conf/logger/mine.yaml").write_text(f"mine:\n  _target_: dict\n  api_key: {key}\n")
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "launcher=submitit_local", "logger=mine", "seed=1"])
    cfg = compose("train", ["logger=mine"])
    if refused:
        with pytest.raises(ConfigError, match=r"logger.mine.api_key: Hydra's launcher would write .*oc.env"):
            refuse_written(cfg)
        assert launch(lambda cfg: None, "train", lambda cfg: None) == 2
        assert "logger.mine.api_key" in capsys.readouterr().err
        assert sorted(path.name for path in here.iterdir()) == ["conf"]
    else:
        refuse_written(cfg)
