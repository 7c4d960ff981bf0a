"""What happens beside the training step: progress, metrics, samples, alarms, checkpoints, stopping on a signal."""

from nla.callbacks.alarms import Alarms
from nla.callbacks.checkpointing import Checkpointing, StateFile
from nla.callbacks.loggers import Tolerant
from nla.callbacks.metrics import MetricsFile
from nla.callbacks.progress import Progress
from nla.callbacks.samples import Samples
from nla.callbacks.summary import Summary
from nla.callbacks.together import Together

__all__ = [
    "Alarms", "Checkpointing", "MetricsFile", "Progress", "Samples", "StateFile", "Summary", "Together", "Tolerant",
]  # fmt: skip
