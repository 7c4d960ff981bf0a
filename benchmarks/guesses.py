"""How often a pair's explanations name each kind of fact, where the context has revealed it and where it has not.

    python benchmarks/guesses.py runs/world/stages/reconstructor/nla

Of the embedded world's test documents, one position each. A verbalizer that knew what is revealed would name nothing
that is not; one that does not know names both alike.
"""

import argparse
import random
import sys
from collections import Counter
from pathlib import Path

from models import world_pair

from nla.data.world import WorldSource
from nla.models.sampling import SamplingParams
from nla.models.target import Target

COLUMNS = ("kind", "named where revealed", "named where not", "cases where not", "wrong where revealed")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pair", type=Path, nargs="?", help="saved pair of the world; default: an untrained one")
    parser.add_argument("--documents", type=int, default=300)
    parser.add_argument("--min-context", type=int, default=24, help="tokens before a position, at least")
    parser.add_argument("--samples", type=int, default=4, help="per position; 0: one greedy explanation")
    arguments = parser.parse_args()
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for kind, revealed, hidden, cases, wrong in shares(arguments):
        print(f"| {kind} | {revealed:.2f} | {hidden:.2f} | {cases} | {wrong:.3f} |")
    return 0


def shares(arguments: argparse.Namespace) -> list[tuple[str, float, float, int, float]]:
    """A line of the table for each kind of fact that some document holds."""
    nla = world_pair(arguments.pair)
    target = Target.from_pretrained(nla.base_model, nla.layer)
    source = WorldSource({"test": arguments.documents})
    documents = source.documents("test")
    lengths = [len(ids) for ids in target.tokenizer([d.text for d in documents], add_special_tokens=False)["input_ids"]]
    places = [[random.Random(n).randrange(arguments.min_context, length)] for n, length in enumerate(lengths)]
    reading = target.read([d.text for d in documents], places)
    group = max(1, arguments.samples)
    temperature = 1.0 if arguments.samples else 0.0
    params = SamplingParams.policy(64, group, temperature=temperature)
    completions = nla.verbalizer.sample(reading.activation, params, seed=1)
    seen: Counter[tuple[str, bool]] = Counter()
    named: Counter[tuple[str, bool]] = Counter()
    wrong: Counter[str] = Counter()
    for index, explanation in enumerate(completions.explanation):
        document, text = documents[index // group], reading.text[index // group]
        known = dict(source.facts(document.id, text))
        claims = {claim.kind: claim for claim in source.claims(explanation or "", document.id, text)}
        for kind, _ in source.facts(document.id, document.text):
            seen[kind, kind in known] += 1
            named[kind, kind in known] += kind in claims
            wrong[kind] += kind in known and kind in claims and not claims[kind].true

    def share(kind: str, revealed: bool) -> float:
        return named[kind, revealed] / max(1, seen[kind, revealed])

    return [
        (kind, share(kind, True), share(kind, False), seen[kind, False], wrong[kind] / max(1, named[kind, True]))
        for kind in sorted({kind for kind, _ in seen})
    ]


if __name__ == "__main__":
    sys.exit(main())
