"""One rank's failure ends all of them, with its message.

Ranks wait for one another inside collectives. One that fails leaves the others waiting: gloo reports a closed
connection, NCCL reports nothing for minutes. So a thread on each rank watches a store that all ranks share; the first
rank that fails puts its message there, and the others print the same message and end with the same status.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed import DistError, TCPStore

from nla.errors import Interrupted, NLAError, TrainingError, first_line

LOOK_EVERY = 0.25  # seconds
LINGER = 2.0  # seconds that the store and the failed rank remain: torchrun and srun end all ranks once one is gone


class RankFailure(Callback):
    """A callback of the Trainer; run what all ranks do inside `with rank_failure.shared():`."""

    def __init__(self) -> None:
        self._stage, self._rank = "", 0
        self._store: TCPStore | None = None  # served by rank 0
        self._printed = False
        self._over = threading.Event()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stage, self._rank = str(getattr(pl_module, "name", "")), trainer.global_rank
        if trainer.world_size == 1 or self._store is not None:
            return
        host: str = trainer.strategy.cluster_environment.main_address  # pyright: ignore[reportAttributeAccessIssue]
        served = TCPStore(host, 0, is_master=True, wait_for_workers=False) if trainer.is_global_zero else None
        port = trainer.strategy.broadcast(served.port if served else 0)
        self._store = served or TCPStore(host, port, is_master=False)
        threading.Thread(target=self._watch, name="rank failure", daemon=True).start()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, NLAError):
            self._over.set()  # it ends without this thread

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Raises the error of the rank that failed first, on all ranks; running out of memory is a TrainingError."""
        cause = ""
        try:
            yield
        except Interrupted:
            raise  # the ranks have agreed on it
        except torch.OutOfMemoryError as error:
            cause = first_line(error)
        except NLAError as error:
            raise self._first(error) from error
        except Exception as error:  # usually the backend's, because another rank is gone
            first = self._failure_elsewhere()
            if first is None:
                raise
            if self._printed:
                os._exit(first.status)
            raise first from error
        finally:
            self._over.set()
        if cause:  # outside the handler, whose traceback holds the tensors
            raise self._first(
                TrainingError(
                    f"stage {self._stage}, rank {self._rank}: out of memory ({cause}): lower hardware.micro_batch_size "
                    f"or stage.{self._stage}.data.batch_size, or take more GPUs (nla plan says what fits)"
                )
            )

    def _first(self, error: NLAError) -> NLAError:
        """The error that all ranks end with: this one, or that of a rank that failed before."""
        if self._store is None:
            return error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher sends it once another rank is gone
        failure = {"message": str(error), "details": error.details, "status": error.status, "rank": self._rank}
        try:
            self._store.compare_set("failure", "", json.dumps(failure))
        except DistError:  # rank 0 is gone, and the store with it
            return error
        first = self._failure_elsewhere()
        if first is None or self._rank == 0:
            time.sleep(LINGER)
        return first or error

    def _failure_elsewhere(self) -> NLAError | None:
        """The error of another rank that failed before; None if none has."""
        try:
            if self._store is None or not self._store.check(["failure"]):
                return None
            failure = json.loads(self._store.get("failure"))
        except DistError:
            return None
        if failure["rank"] == self._rank:
            return None
        error = TrainingError(str(failure["message"]), str(failure["details"]))
        error.status = int(failure["status"])
        return error

    def _watch(self) -> None:
        """End this process if another rank has failed while this one waits for it inside a collective."""
        while not self._over.wait(LOOK_EVERY):
            first = self._failure_elsewhere()
            if first is not None:
                self._printed = True
                print("error:", " ".join(str(first).split()), file=sys.stderr, flush=True)
                if self._rank == 0:
                    time.sleep(LINGER)
                os._exit(first.status)
