"""The live page of `nla app`: a text read, explained and edited while a person looks on.

`session` is the logic, without Gradio; `page` is what is seen, and needs it. May import `nla.report` and below.
Public: the names below.
"""

from nla.app.session import Edit, Explanation, Session

__all__ = ["Edit", "Explanation", "Session"]
