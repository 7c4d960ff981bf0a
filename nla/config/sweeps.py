"""The jobs of a sweep, each in its own process: when one fails or is killed, the others still run.

Under Hydra's own launcher all jobs share one process, so the first that is killed ends the rest, and Hydra
writes the overrides into multirun.yaml unredacted. `launcher=submitit_local` was tried in place of this module
(hydra-submitit-launcher 1.2.0): it starts all jobs at once on the same device, prints nothing when one fails, and exits
with 0 when all have failed.

    runs/<name>/sweep/jobs.json     status and command of each job, without secrets
"""

import itertools
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.types import Glob, Override

from nla import files
from nla.errors import ConfigError
from nla.redact import redacted
from nla.signals import StopRequest

JOBS = "jobs.json"
POLL = 0.1  # seconds between polls of a running job


@dataclass(frozen=True, slots=True)
class Job:
    """One combination of the sweep's values. `folder` is None for a program that has no run folder."""

    overrides: tuple[str, ...]
    folder: Path | None

    @property
    def name(self) -> str:
        return self.folder.name if self.folder else " ".join(self.overrides)

    @property
    def command(self) -> list[str]:
        """What runs this job, alone and in its own folder."""
        run_dir = [] if self.folder is None else [f'run_dir="{self.folder}"']
        return [sys.argv[0], *self.overrides, *run_dir]


def combinations(parsed: Sequence[Override], groups: Path) -> Iterator[tuple[str, ...]]:
    """Overrides of each job, the last key varying fastest, as Hydra orders them."""
    yield from itertools.product(*(choices(override, groups) for override in parsed))


def choices(override: Override, groups: Path) -> list[str]:
    """The values of a sweep over this key, each as a separate override; `groups` holds the config groups."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    key, value = override.get_key_element(), override.value()
    if isinstance(value, Glob):
        names = sorted(path.stem for path in (groups / key.split("@")[0]).glob("*.yaml"))
        return [f"{key}={name}" for name in value.filter(names)]
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def refuse_secrets(parsed: Sequence[Override]) -> None:
    """Raises ConfigError: overrides name the jobs' folders, so they end up on the disk."""
    for override in parsed:
        path, _, value = str(override.input_line).partition("=")
        key = path.rpartition(".")[2]
        if redacted({key: value}) != {key: value}:
            raise ConfigError(
                f"{path}: a secret in a sweep's overrides would be written to disk with their names; "
                "log in with the tool's own command or its environment variable"
            )


def run_jobs(jobs: Sequence[Job]) -> int:
    """Run one after the other, print each job's result and return the exit status.

    0 if all are done; 2 if every failure was a person's mistake; 128 + signal if one stopped the sweep (the running
    job receives it too); else 1.
    """
    stop = StopRequest()
    stop.listen()
    codes: list[int | None] = []
    for job in jobs:
        codes.append(None if stop.signal else _run(job, stop))
        _record(jobs, codes)
    _print(jobs, codes)
    if stop.signal:
        return 128 + stop.signal
    failed = {code for code in codes if code != 0}
    return 0 if not failed else 2 if failed == {2} else 1


def status(code: int | None) -> str:
    """In words, from a process's return code: negative for the signal that killed it, None if it was not started."""
    if code is None:
        return "not started"
    if code < 0:
        return f"killed ({signal.Signals(-code).name})"
    if code in (128 + signal.SIGTERM, 128 + signal.SIGINT):
        return f"stopped ({signal.Signals(code - 128).name})"
    return "done" if code == 0 else f"failed (status {code})"


def _run(job: Job, stop: StopRequest) -> int:
    print(f"job {job.name}", flush=True)
    # own process group: a Ctrl-C reaches only this process, which passes it on once
    process = subprocess.Popen([sys.executable, *job.command], process_group=0)
    passed_on = False
    while (code := process.poll()) is None:
        if stop.signal and not passed_on:
            process.send_signal(stop.signal)
            passed_on = True
        time.sleep(POLL)
    return code


def _again(job: Job) -> str:
    program, *arguments = job.command
    return shlex.join(["python", Path(program).name, *arguments])


def _record(jobs: Sequence[Job], codes: Sequence[int | None]) -> None:
    rows = [
        {"job": job.name, "status": status(code), "command": _again(job)}
        for job, code in itertools.zip_longest(jobs, codes)
    ]
    folder = jobs[0].folder
    if folder is not None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(folder.parent / JOBS, json.dumps(rows, indent=2) + "\n")


def _print(jobs: Sequence[Job], codes: Sequence[int | None]) -> None:
    print(f"{sum(code == 0 for code in codes)} of {len(jobs)} jobs done", flush=True)
    width = max(len(job.name) for job in jobs)
    for job, code in zip(jobs, codes, strict=True):
        again = "" if code == 0 else f"   again: {_again(job)}"
        print(f"  {job.name:<{width}}  {status(code)}{again}", flush=True)
