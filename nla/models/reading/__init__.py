"""Other ways to an activation.

May import the other modules of `nla.models` and what is below them.
Public: `chat`, `tensors` (of other libraries), `comparison` (two pairs side by side).
"""
