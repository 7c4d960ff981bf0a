"""What happens beside the training step: progress, metrics, samples, alarms, checkpoints, stopping on a signal."""

from nla.training.callbacks.alarms import Alarms
from nla.training.callbacks.checkpointing import Checkpointing, StateFile
from nla.training.callbacks.loggers import Tolerant
from nla.training.callbacks.metrics import MetricsFile
from nla.training.callbacks.progress import Progress
from nla.training.callbacks.samples import Samples
from nla.training.callbacks.summary import Summary
from nla.training.callbacks.together import Together

__all__ = [
    "Alarms", "Checkpointing", "MetricsFile", "Progress", "Samples", "StateFile", "Summary", "Together", "Tolerant",
]  # fmt: skip
