"""The tokens that one step of a stage puts through each model, laid out as in the code."""

from dataclasses import dataclass

from nla.models.packing import shared_layout


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass.

    Args:
        tokens: fed, padding and repeated prompts included. pairs: of query and key (a square per row: kernels that
            skip what a causal mask hides do half of it). asked: positions that reach the output head.
        length: of a row. masked: a mask is handed in, so that keys and values are repeated for each head.
    """

    tokens: float
    pairs: float
    asked: float = 0
    length: int = 0
    masked: bool = False

    def __add__(self, other: "Pass") -> "Pass":
        total = (self.tokens + other.tokens, self.pairs + other.pairs, self.asked + other.asked)
        return Pass(*total, max(self.length, other.length), self.masked or other.masked)


def rows_of(rows: float, length: int, asked: float = 0) -> Pass:
    """`rows` rows of equal length."""
    return Pass(rows * length, rows * length**2, asked, length)


def teacher_forced(activations: float, group: int, prompt: int, response: int, d_model: int, shared: int = 0) -> Pass:
    """The verbalizer's trained pass (`nla.models.packing`): samples of a group behind one
    prompt, else behind what all share.

    Args:
        shared: tokens of the prompt before the marker.
    """
    asked = activations * group * response
    before, together = shared_layout(max(1, round(activations)), group, prompt, shared, response, d_model)
    sample = prompt - before + response
    plain = rows_of(activations * group / together, before + together * (sample - 1), asked)
    return Pass(plain.tokens, plain.pairs, asked, plain.length, masked=together > 1)


def prefill(activations: float, prompt: int, shared: int) -> Pass:
    """What precedes the marker once, the rest of the prompt once per activation."""
    suffix = prompt - shared
    return Pass(shared + activations * suffix, shared**2 + activations * suffix * prompt, activations, suffix)


def decode(samples: float, prompt: int, response: int) -> Pass:
    """One token at a time, `response - 1` forward passes for samples that all run to this length."""
    steps = response - 1
    return Pass(samples * steps, samples * sum(prompt + 1 + step for step in range(steps)), samples * steps, 1)
