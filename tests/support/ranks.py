"""Tasks on several ranks: real processes on gloo."""

import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path

from support import parallel_workers


def start(ranks: int, strategy: str, work: Path, task: str, out: Path) -> None:
    """Run a task on this many ranks; fails when one of them fails or hangs."""
    codes = exit_codes(ranks, strategy, work, task, out)
    assert codes == [0] * ranks, f"{task} with {strategy}: exit codes {codes}"


def exit_codes(ranks: int, strategy: str, work: Path, task: str, out: Path, grace: float = 0.0) -> list[int | None]:
    """The exit code of each rank; None for one still running `grace` seconds after the first failure."""
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # of the server, which loads the libraries once for all
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["support.parallel_workers"])
    out.mkdir(parents=True, exist_ok=True)
    arguments = (ranks, free_port(), strategy, str(work), task, str(out))
    processes = [context.Process(target=parallel_workers.on_rank, args=(rank, *arguments)) for rank in range(ranks)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + LONGEST
    while any(process.exitcode is None for process in processes) and time.monotonic() < deadline:
        if any(process.exitcode for process in processes):
            deadline, grace = min(deadline, time.monotonic() + grace), LONGEST
        time.sleep(0.05)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes


LONGEST = 150  # seconds that ranks may take, on a busy machine


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
