"""Teachers write the warm-start texts: a service over HTTP, a local instruct model, or the corpus's own truth."""

from nla.teachers.local import LocalTeacher
from nla.teachers.protocol import Explanation, Passage, Teacher
from nla.teachers.service import AnthropicTeacher, OpenAITeacher
from nla.teachers.truth import TruthTeacher

__all__ = ["AnthropicTeacher", "Explanation", "LocalTeacher", "OpenAITeacher", "Passage", "Teacher", "TruthTeacher"]
