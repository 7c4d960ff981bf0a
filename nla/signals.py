"""SIGTERM and Ctrl-C: noted and acted on at the next step boundary, or at once where there is nothing to save."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from nla.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether a signal has asked this process to stop, and which: 0 is none.

    The first one is noted. From then on the signal has its default effect again, so a second one ends the process at
    once, even inside a long computation.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._owner = 0

    def listen(self) -> None:
        """Take the handlers over. Lightning's own broadcast from rank 0 alone and would hang when rank 1 gets one."""
        if threading.current_thread() is threading.main_thread():
            self._owner = os.getpid()
            for number in SIGNALS:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() == self._owner:  # a forked loader worker waits for its parent to end it
            self.signal = self.signal or number

    def check(self, stage: str) -> None:
        """Raises Interrupted for a signal that came after the last step boundary."""
        if self.signal:
            name = signal.Signals(self.signal).name
            raise Interrupted(
                f"stage {stage} stopped by {name} after its last step; the same command continues",
                self.signal,
            )


@contextmanager
def terminated_at_once() -> Iterator[None]:
    """Inside, SIGTERM ends this process after the running operation: there is nothing to save.

    Lightning's Trainer keeps a handler that is there already and calls it besides its own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
