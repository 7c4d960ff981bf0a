"""Two models, or two checkpoints of a pair, side by side on the same text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nla.errors import DataError
from nla.models.pair import NLA
from nla.models.target import Target


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row per text: the explanation of each named pair, and the cosine of its reconstruction."""

    text: list[str]  # context up to the compared place
    explanation: dict[str, list[str | None]]
    cosine: dict[str, list[float]]

    def __len__(self) -> int:
        return len(self.text)

    def __str__(self) -> str:
        lines = []
        for row, text in enumerate(self.text):
            lines.append(f"...{' '.join(text.split())[-60:]}")
            for name, explanations in self.explanation.items():
                lines.append(f"  {name} ({self.cosine[name][row]:.2f}): {explanations[row] or '(malformed)'}")
        return "\n".join(lines)


def compare(
    pairs: Mapping[str, tuple[NLA, Target]],
    texts: Sequence[str],
    ends: Sequence[int] | None = None,
    max_new_tokens: int = 150,
) -> Comparison:
    """Greedy explanations of each pair, each from its own target's activation at the same place of each text.

    Args:
        pairs: by the name under which they are shown; the targets may be different models with different tokenizers.
        ends: characters of each text up to the place; None: the whole text. Each tokenizer reads its last token of
            that part.
    """
    if not pairs:
        raise DataError("nothing to compare: give at least one named (nla, target)")
    if ends is not None and len(ends) != len(texts):
        raise DataError(f"{len(ends)} ends for {len(texts)} texts: give one for each")
    shown = list(texts) if ends is None else [text[:end] for text, end in zip(texts, ends, strict=True)]
    explanation: dict[str, list[str | None]] = {}
    cosine: dict[str, list[float]] = {}
    for name, (nla, target) in pairs.items():
        if (nla.layer, nla.d_model) != (target.layer, target.d_model):
            raise DataError(
                f"{name}: the pair explains layer {nla.layer} of width {nla.d_model}, its target is read at layer "
                f"{target.layer} of width {target.d_model}"
            )
        reading = target.read(shown, positions="last")
        samples = nla.explain(reading.activation, temperature=0.0, max_new_tokens=max_new_tokens)
        explanation[name] = [row[0] for row in samples]
        cosine[name] = nla.score(reading.activation, explanation[name]).cosine.tolist()
    return Comparison(shown, explanation, cosine)
