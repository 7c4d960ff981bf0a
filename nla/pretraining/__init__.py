"""A small target from text: its tokenizer, what it reads, and the training loop behind `nla pretrain`.

May import `nla.data` and below, but neither training nor evaluation. Public: the names below.
"""

from nla.pretraining.lessons import Lessons
from nla.pretraining.loop import Architecture, Recipe, pretrain
from nla.pretraining.tokenizer import train_tokenizer

__all__ = ["Architecture", "Lessons", "Recipe", "pretrain", "train_tokenizer"]
