"""A logger whose service goes down."""

from typing import Any

from lightning.pytorch.loggers import Logger


class Down(Logger):
    """A service that answers `until` times."""

    name, version = "down", 0

    def __init__(self, until: int) -> None:
        super().__init__()
        self.until, self.calls = until, 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.calls += 1
        if self.calls > self.until:
            raise ConnectionError("no route to host")

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...
