"""Rows of unequal length as one tensor."""

from nla.core.padding import padded


def test_padded():
    tokens, mask = padded([[5, 6, 7], [8]], fill=0)
    assert tokens.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[True] * 3, [True, False, False]]
