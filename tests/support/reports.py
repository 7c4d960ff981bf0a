"""Reports made by hand, for the page and its browser tests."""

from typing import Any

from nla.report.records import Report, SampleRecord, Sentence, TextRecord, TokenRecord, Wrong

HOSTILE = {
    "script": "</script><script>alert(1)</script><!-- <img src=x onerror=alert(2)>",
    "separators": "one\u2028two\u2029three",
    "direction": "evil\u202egnp.exe\u2066isolated",
    "terminal": "\x1b[31mred\x1b[0m\x07\x00",
    "entities": "&lt;b&gt; & \"quoted\" 'single' {{SCRIPT}} \\u003c",
    "invisible": "a\u200bb\ufeffc\U000e0041d",
    "long": "w" * 100_000,
}


def token(
    position: int, text: str, at: int, explanation: str | None = "It says a thing.", **changes: Any
) -> TokenRecord:
    """With error `0.1 * position`, unless `changes` say otherwise."""
    values: dict[str, Any] = {
        "token": text, "token_id": 100 + position, "position": position,
        "start": at + len(text) - len(text.lstrip()), "end": at + len(text), "l2_norm": 12.5,
        "description": explanation, "mse": 0.08 * position, "mse_of_mean": 0.8, "relative_error": 0.1 * position,
        "cosine_similarity": 0.9,
    }  # fmt: skip
    return TokenRecord(**{**values, **changes})


def text_record(results: list[TokenRecord], text: str, name: str = "text 1", **changes: Any) -> TextRecord:
    values: dict[str, Any] = {
        "name": name, "text": text, "model": "tiny", "revision": None, "layer_index": 1, "pair": "pair",
        "stage": "joint", "mean": "text", "results": results,
    }  # fmt: skip
    return TextRecord(**{**values, **changes})


def small_report() -> Report:
    """`The cat sat.` and `A dog.`, with everything that a record can hold."""
    said = ["An article.", "A cat. It is small.", "It sat.\nIt was tired.", None]
    words = ["The", " cat", " sat", "."]
    starts = [0, 3, 7, 11]
    extras: list[dict[str, Any]] = [
        {"remark": "norm 900, where training activations had 10 to 20"},
        {
            "sentences": [Sentence(0, 6, 0.5), Sentence(7, 19, -0.1)],
            "nearest_wrong": Wrong(2, 0.05),
            "next_words": [("sat", 0.5), ("ran", 0.001)],
            "samples": [SampleRecord("A cat.", 0.2), SampleRecord(None, 2.5)],
            "agreement": 0.31,
        },
        {"sentences": [Sentence(0, 7, 0.2), Sentence(8, 21, 0.0)], "nearest_wrong": Wrong(1, 1.2)},
        {"relative_error": 1.7},
    ]
    rows = zip(words, starts, said, extras, strict=True)
    results = [token(index, w, s, explanation, **extra) for index, (w, s, explanation, extra) in enumerate(rows)]
    other = [token(0, "A", 0, "A letter."), token(1, " dog", 1, "A dog."), token(2, ".", 5, "The end.")]
    return Report(
        [text_record(results, "The cat sat."), text_record(other, "A dog.", "text 2", layer_index=2)], "nla test"
    )


def hostile_report() -> Report:
    """Each hostile string as a token, as its explanation, and in every other place for text."""
    text, results = "", []
    for position, string in enumerate(HOSTILE.values()):
        record = token(
            position, string, 0, string[:5000], start=len(text), end=len(text) + len(string),
            sentences=[Sentence(0, min(len(string), 5000), 0.1)],
            next_words=[(string, 0.5)], samples=[SampleRecord(string, 0.1)] * 2, agreement=1.0, remark=string,
            nearest_wrong=Wrong((position + 1) % len(HOSTILE), 1.0),
        )  # fmt: skip
        results.append(record)
        text += string
    name = HOSTILE["script"] + HOSTILE["direction"]
    return Report([text_record(results, text, name, model=name, pair=name, stage=name, revision=name)] * 2, name)


def large_report(tokens: int = 5000) -> Report:
    """Words of differing error, each with an explanation of about 200 characters."""
    words = [f" word{index % 97}" for index in range(tokens)]
    results, start = [], 0
    for index, word in enumerate(words):
        said = f"It names the word {index % 97}. " + "It goes on about what comes before. " * 4
        spans = [Sentence(0, 20, 0.3), *(Sentence(22 + 36 * k, 57 + 36 * k, 0.01) for k in range(4))]
        error = (index * 37 % 200) / 100
        extra: dict[str, Any] = {"next_words": [("word", 0.4), ("and", 0.2), ("is", 0.1)], "agreement": 0.5}
        extra |= {"samples": [SampleRecord(said, error)] * 2, "nearest_wrong": Wrong((index + 1) % tokens, 1.1)}
        results.append(token(index, word, start, said, relative_error=error, mse=0.8 * error, sentences=spans, **extra))
        start += len(word)
    return Report([text_record(results, "".join(words))], "nla test")
