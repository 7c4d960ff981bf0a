"""The same explanations, read otherwise: only their first tokens, without quotations, or by a frozen reconstructor.

FVE by prefix length shows where in its text a pair says what matters. A frozen second reconstructor shows how much of
an FVE is an understanding between two halves that were trained together.
"""

from collections.abc import Sequence
from typing import Any

from nla.evaluation.bootstrap import Variance
from nla.evaluation.controls import missing
from nla.evaluation.explanations import Texts, reconstruct, score
from nla.evaluation.rows import Rows
from nla.models.explanations import prefixes, without_quotes
from nla.models.pair import NLA


def by_prefix(
    nla: NLA, rows: Rows, texts: Texts, variance: Variance, lengths: Sequence[int], batch_size: int
) -> list[dict[str, Any]]:
    """`{tokens, fve, ci95}` for each length, counted in the reconstructor's tokens, without tags.

    A text that is shorter is read whole; malformed ones count as orthogonal at every length.
    """
    found = []
    for length in lengths:
        cut = prefixes(nla.reconstructor.tokenizer, [text or "" for text in texts.explanation], [length] * len(rows))
        error = score(reconstruct(nla, cut, batch_size), rows.activation, texts.explanation).error
        found.append({"tokens": length, **variance.fve(error)})
    return found


def unquoted(nla: NLA, rows: Rows, texts: Texts, variance: Variance, batch_size: int) -> dict[str, Any]:
    """`{fve, ci95, quoted_share}` of the explanations without what they quote; the share is of their characters.

    What is lost beside `fve` sat in fragments of the text itself, not in words about it.
    """
    said = [text or "" for text in texts.explanation]
    bare = [without_quotes(text) for text in said]
    share = 1 - sum(map(len, bare)) / max(1, sum(map(len, said)))
    if bare == said:
        return {**missing("no explanation quotes anything"), "quoted_share": 0.0}
    error = score(reconstruct(nla, bare, batch_size), rows.activation, texts.explanation).error
    return {**variance.fve(error), "quoted_share": share}


def frozen_reconstructor(
    warm_start: NLA | str, rows: Rows, texts: Texts, variance: Variance, batch_size: int
) -> dict[str, Any]:
    """FVE of these texts by the warm start's reconstructor, which joint training has not touched."""
    if isinstance(warm_start, str):
        return missing(warm_start)
    prediction = reconstruct(warm_start, texts.explanation, batch_size)
    return variance.fve(score(prediction, rows.activation, texts.explanation).error)
