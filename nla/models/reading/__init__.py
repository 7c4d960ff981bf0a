"""Other ways to read activations.

May import the other modules of `nla.models` and the rooms below them.
Public: `chat`, `tensors` (of other libraries), `comparison` (two pairs side by side).
"""
