"""Records for the page, by hand, and texts that try to break it."""

from typing import Any

HOSTILE = (
    "</script><script>window.broken = 1</script>",
    "<!--<script>window.broken = 1",
    "a\u2028b\u2029c",
    "\u202egnirts\u202c",
    "\x1b[31mred\x1b[0m",
    "<img src=x onerror='window.broken = 1'>",
    "x" * 100_000,
)


def token(position: int, text: str, description: str | None = "It is so.", error: float = 0.5) -> dict[str, Any]:
    """One token's record."""
    return {
        "position": position,
        "token": text,
        "token_id": position,
        "l2_norm": 1.0,
        "description": description,
        "cosine_similarity": 1 - error / 2,
        "mse": error,
        "relative_error": error,
        "sentences": [{"text": "It is so.", "contribution": 0.2}, {"text": "More.", "contribution": -0.1}],
        "samples": ["a sample", None],
        "confidence": 0.7,
        "next_words": [["on", 0.5], ["off", 0.25]],
        "rival": {"position": 0, "description": "It is not so.", "relative_error": 0.9},
        "remark": None,
    }


def data(texts: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Records as `nla.report.to_json` gives them."""
    return {
        "format": "nla-tokens",
        "version": 1,
        "model": "toy",
        "layer_index": 3,
        "d_model": 8,
        "stage": "joint",
        "pair": "runs/toy",
        "texts": [
            {"text": "".join(item["token"] for item in tokens), "fve": 0.5, "results": tokens} for tokens in texts
        ],
    }
