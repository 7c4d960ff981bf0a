"""What happens beside the training step: progress, metrics, samples, alarms, checkpoints, stopping on a signal.

May import what `nla.training` may, without its stages, program and preflight.
Public: the callbacks that `conf/callbacks` and `nla.training.program` name.
"""

from nla.training.callbacks.alarms import Alarms
from nla.training.callbacks.checkpointing import Checkpointing, StateFile
from nla.training.callbacks.distributions import Distributions
from nla.training.callbacks.loggers import FaultTolerantLogger
from nla.training.callbacks.metrics import MetricsFile
from nla.training.callbacks.progress import Progress
from nla.training.callbacks.rank_failure import RankFailure
from nla.training.callbacks.samples import Samples
from nla.training.callbacks.summary import Summary

__all__ = [
    "Alarms",
    "Checkpointing",
    "Distributions",
    "FaultTolerantLogger",
    "MetricsFile",
    "Progress",
    "RankFailure",
    "Samples",
    "StateFile",
    "Summary",
]  # fmt: skip
