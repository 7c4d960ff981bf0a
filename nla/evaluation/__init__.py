"""Evaluation of a pair: suites as plain functions (nla, target, data) -> result, files, and a table for a person.

May import `nla.data` and below, but neither training nor pretraining. Public: the names below.
"""

from nla.evaluation.activations import EvaluationData
from nla.evaluation.evaluation import Evaluation, evaluate
from nla.evaluation.files import read_samples
from nla.evaluation.run import run
from nla.evaluation.settings import EvaluationSettings
from nla.evaluation.subject import Subject, read_subject

__all__ = [
    "Evaluation",
    "EvaluationData",
    "EvaluationSettings",
    "Subject",
    "evaluate",
    "read_samples",
    "read_subject",
    "run",
]
