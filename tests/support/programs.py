"""train.py and its like as a person starts them, each in a process of its own, without importing everything each time.

A server imports the heavy modules once and forks for each program. What a program does is what it does from a shell:
its own working directory, arguments, output and exit status.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

from support import ROOT

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["nla.training.program", "nla.evaluation.program"])
LONGEST = 300  # seconds


def run(*arguments: str, cwd: Path, status: int = 0) -> str:
    """Run a program of the repository to its end; what it has printed, first the output and then the errors."""
    with tempfile.TemporaryDirectory() as scratch:
        output, errors = Path(scratch, "output"), Path(scratch, "errors")
        streams = (str(output), str(errors))
        process: Any = CONTEXT.Process(target=_program, args=(arguments, str(cwd), streams))
        process.start()
        process.join(LONGEST)
        if process.exitcode is None:
            process.kill()
            process.join()
        shown = [path.read_text(errors="replace") if path.is_file() else "" for path in (output, errors)]
    assert process.exitcode == status, shown[0][-3000:] + shown[1][-3000:]
    return "".join(shown)


def _program(arguments: tuple[str, ...], cwd: str, streams: tuple[str, str]) -> None:
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(cwd)
    os.environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    script = str(ROOT / arguments[0])
    sys.argv = [script, *arguments[1:]]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")
