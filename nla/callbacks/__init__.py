"""What a person sees while a stage runs: progress with the time left, and samples at each validation."""

from nla.callbacks.progress import Progress
from nla.callbacks.samples import Samples

__all__ = ["Progress", "Samples"]
