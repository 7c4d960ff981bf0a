"""The extractive fallback: warm-start texts for a corpus without explanations.

It quotes instead of explaining: the words just read, and the words that distinguish the text so far from the corpus. It
teaches a verbalizer the form, and that the activation matters; joint training has to find the rest. Results obtained
with it are reported under its name.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable

WORD = re.compile(r"[^\W\d_]{3,}")
CLAUSE_END = re.compile(r"[.!?;:,\n]+\s*")


class Extractive:
    """Names the last clause and the most distinctive words, by term frequency times inverse document frequency.

    Args:
        corpus: texts for counting document frequencies (only those of the warm-start split).
        words: most distinctive words to name.
        clause_words: most words of the clause to quote, counted from its end.
    """

    def __init__(self, corpus: Iterable[str], words: int = 4, clause_words: int = 6) -> None:
        self.words, self.clause_words = words, clause_words
        self.documents = 0
        self.frequency: Counter[str] = Counter()
        for text in corpus:
            self.documents += 1
            self.frequency.update(set(_words(text)))

    def explain(self, context: str) -> str | None:
        """`It ends with "...". It is about a, b, c.`; None if the context has no words."""
        clause = _last_clause(context, self.clause_words)
        if not clause:
            return None
        counts = Counter(_words(context))
        ranked = sorted(counts, key=lambda word: (-counts[word] * self._rarity(word), word))[: self.words]
        topic = f" It is about {', '.join(ranked)}." if ranked else ""
        return f'It ends with "{clause}".{topic}'

    def _rarity(self, word: str) -> float:
        return math.log((1 + self.documents) / (1 + self.frequency[word])) + 1e-6


def _words(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)]


def _last_clause(context: str, limit: int) -> str:
    """The words since the last stop, at most `limit`; also those before it if the clause has one word.

    Quotation marks and angle brackets are removed: the text must not close its own quotation or tags.
    """
    clauses = [clause for clause in CLAUSE_END.split(context.rstrip()) if clause.strip()]
    if not clauses:
        return ""
    words = clauses[-1].split()
    if len(words) < 2:
        words = " ".join(clauses[-2:]).split()
    return re.sub(r'["<>]', "", " ".join(words[-limit:])).strip()
