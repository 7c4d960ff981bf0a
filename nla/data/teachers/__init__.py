"""Teachers write the warm-start texts: a service over HTTP, a local instruct model, or the corpus's own truth.

May import `nla.data.source` and what is below `nla.data`; loads neither Lightning nor Hydra. Public: the names below.
"""

from nla.data.teachers.cached import CachedTeacher
from nla.data.teachers.local import LocalTeacher
from nla.data.teachers.protocol import Explanation, Passage, Teacher
from nla.data.teachers.service import AnthropicTeacher, OpenAITeacher, ServiceTeacher
from nla.data.teachers.target import TargetTeacher
from nla.data.teachers.truth import TruthTeacher

__all__ = [
    "AnthropicTeacher",
    "CachedTeacher",
    "Explanation",
    "LocalTeacher",
    "OpenAITeacher",
    "Passage",
    "ServiceTeacher",
    "TargetTeacher",
    "Teacher",
    "TruthTeacher",
]
