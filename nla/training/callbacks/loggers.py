"""A logger that fails does not end the run: metrics.csv keeps the metrics."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch import Tensor

from nla.errors import first_line


class FaultTolerantLogger(Logger):
    """Forwards everything to `inner` until it fails; then warns once and stops using it."""

    def __init__(self, inner: Logger) -> None:
        super().__init__()
        self.inner = inner
        self.failed = False

    @property
    def name(self) -> str | None:
        return self.inner.name

    @property
    def version(self) -> int | str | None:
        return self.inner.version

    @property
    def save_dir(self) -> str | None:
        return self.inner.save_dir

    @property
    def experiment(self) -> Any:
        """Made by Lightning before the run, so that a failing logger is noticed at once."""
        return self._try(lambda: getattr(self.inner, "experiment", None))

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._try(lambda: self.inner.log_metrics(metrics, step))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self._try(lambda: self.inner.log_hyperparams(params, *args, **kwargs))

    def log_table(self, tag: str, markdown: str, step: int) -> None:
        """A table of texts, where the logger shows Markdown."""
        if isinstance(self.inner, TensorBoardLogger):
            experiment = self.inner
            self._try(lambda: experiment.experiment.add_text(tag, markdown, step))

    def log_histogram(self, tag: str, values: Tensor, step: int) -> None:
        """Where the logger shows histograms."""
        if isinstance(self.inner, TensorBoardLogger):
            experiment = self.inner
            self._try(lambda: experiment.experiment.add_histogram(tag, values.detach().float().cpu(), step))

    def log_result(self, params: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """What a run was given and what came out, side by side with other runs (TensorBoard's HPARAMS)."""
        if isinstance(self.inner, TensorBoardLogger):
            experiment = self.inner
            self._try(lambda: experiment.log_hyperparams(dict(params), dict(metrics)))

    def log_graph(self, *args: Any, **kwargs: Any) -> None:
        self._try(lambda: self.inner.log_graph(*args, **kwargs))

    def save(self) -> None:
        self._try(self.inner.save)

    def finalize(self, status: str) -> None:
        self._try(lambda: self.inner.finalize(status))

    def _try(self, action: Callable[[], Any]) -> Any:
        if self.failed:
            return None
        try:
            return action()
        except Exception as error:  # a full disk, a server that does not answer: every logger has its own classes
            self.failed = True
            warnings.warn(
                f"{type(self.inner).__name__} fails and is left out from here on ({first_line(error)}); training goes "
                "on, and metrics.csv has the metrics",
                stacklevel=2,
            )
            return None
