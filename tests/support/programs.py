"""train.py and its like as a person starts them, each in a process of its own, without importing everything each time.

A server imports the heavy modules once and forks for each program. What a program does is what it does from a shell:
its own working directory, environment, arguments, output, signals and exit status.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support import ROOT

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["nla.training.program", "nla.evaluation.program"])
LONGEST = 300.0  # seconds


class Program:
    """A running program, with the names that `subprocess.Popen` has for the same."""

    def __init__(self, *arguments: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
        self._scratch = tempfile.TemporaryDirectory()
        self._streams = [Path(self._scratch.name, name) for name in ("output", "errors")]
        streams, folder = [str(path) for path in self._streams], str(cwd or Path.cwd())
        self._process: Any = CONTEXT.Process(
            target=_program, args=(arguments, folder, streams, dict(environment or {})), daemon=False
        )
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        if self._process.exitcode is None:
            self._process.kill()

    def output(self) -> str:
        """What it has printed so far."""
        return self._streams[0].read_text(errors="replace") if self._streams[0].is_file() else ""

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float = LONGEST) -> tuple[str, str]:
        """Wait for its end; its output and errors."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        output, errors = (path.read_text(errors="replace") if path.is_file() else "" for path in self._streams)
        return output, errors


def run(*arguments: str, cwd: Path, status: int = 0) -> str:
    """Run a program of the repository to its end; what it has printed, first the output and then the errors."""
    program = Program(*arguments, cwd=cwd)
    output, errors = program.communicate()
    assert program.returncode == status, output[-3000:] + errors[-3000:]
    return output + errors


def _program(arguments: tuple[str, ...], cwd: str, streams: list[str], environment: dict[str, str]) -> None:
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]
    os.chdir(cwd)
    os.environ |= {"PYTHONPATH": f"{ROOT}:{ROOT}/tests", "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment}
    script = str(ROOT / arguments[0])
    sys.argv = [script, *arguments[1:]]
    sys.path[:0] = [str(Path(script).parent), str(ROOT / "tests")]
    runpy.run_path(script, run_name="__main__")
