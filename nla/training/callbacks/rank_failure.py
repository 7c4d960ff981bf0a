"""One rank's failure ends all of them, with its message.

Ranks wait for one another inside collectives. One that fails leaves the others there: gloo tells them that a
connection was closed, NCCL says nothing for minutes. So each rank looks, from a thread of its own, into a store that
all share; the first that fails puts there what it has to say, and the others say the same and end with the same status.
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
LINGER = 2.0  # seconds that the store, and the rank that failed, stay: torchrun and srun end all once one is gone


class RankFailure(Callback):
    """Use as a callback of the Trainer, and do what all ranks do inside `with rank_failure.shared():`."""

    def __init__(self) -> None:
        self._stage, self._rank = "", 0
        self._store: TCPStore | None = None  # served by rank 0
        self._said = False
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
            self._over.set()  # it ends by itself

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Raises the error of the rank that failed first, on all ranks; running out of memory is a TrainingError."""
        said = ""
        try:
            yield
        except Interrupted:
            raise  # on which the ranks have agreed
        except torch.OutOfMemoryError as error:
            said = first_line(error)
        except NLAError as error:
            raise self._first(error) from error
        except Exception as error:  # as a rule the backend's, because another rank is gone
            first = self._told()
            if first is None:
                raise
            if self._said:
                os._exit(first.status)
            raise first from error
        finally:
            self._over.set()
        if said:  # outside the handler, whose traceback holds the tensors
            raise self._first(
                TrainingError(
                    f"stage {self._stage}, rank {self._rank}: out of memory ({said}): lower hardware.micro_batch_size "
                    f"or stage.{self._stage}.data.batch_size, or take more GPUs (nla plan says what fits)"
                )
            )

    def _first(self, error: NLAError) -> NLAError:
        """What all ranks end with: this error, or that of a rank that failed before."""
        if self._store is None:
            return error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's, once another rank is gone
        told = {"message": str(error), "details": error.details, "status": error.status, "rank": self._rank}
        try:
            self._store.compare_set("failure", "", json.dumps(told))
        except DistError:  # rank 0 is gone, and the store with it
            return error
        first = self._told()
        if first is None or self._rank == 0:
            time.sleep(LINGER)
        return first or error

    def _told(self) -> NLAError | None:
        """The error that another rank has failed with before; None where none has."""
        try:
            if self._store is None or not self._store.check(["failure"]):
                return None
            told = json.loads(self._store.get("failure"))
        except DistError:
            return None
        if told["rank"] == self._rank:
            return None
        error = TrainingError(str(told["message"]), str(told["details"]))
        error.status = int(told["status"])
        return error

    def _watch(self) -> None:
        """End this process where another rank has failed and this one waits for it inside a collective."""
        while not self._over.wait(LOOK_EVERY):
            first = self._told()
            if first is not None:
                self._said = True
                print("error:", " ".join(str(first).split()), file=sys.stderr, flush=True)
                if self._rank == 0:
                    time.sleep(LINGER)
                os._exit(first.status)
