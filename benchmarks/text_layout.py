"""What of an activation do short texts carry, before any training? Words of the context, and sentences in two orders.

    python benchmarks/text_layout.py                 # SmolLM2 on sotu, 2000 positions to fit, 500 held out, in minutes
    python benchmarks/text_layout.py --quick         # a size for a test

FVE of a ridge regression from the untrained model's state at the last token of a text to the activation: of the last
words of the context alone, as they are, and of the sentences of `teacher=self` in the reconstructor's prompt. What the
words alone reach at a block bounds what an explanation can reach by quoting that many words.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import ROOT, cpu_model
from torch import Tensor

from nla.core.fve import FractionOfVarianceExplained, normalized_activations
from nla.core.padding import length_buckets, padded
from nla.core.ridge import NormalEquations
from nla.data.documents import ReadingPlan, collate, prepare
from nla.data.positions import keyed_seed
from nla.data.teachers.protocol import Passage
from nla.data.teachers.target import TargetTeacher
from nla.data.text import TextSource
from nla.models.prompts import pad_id
from nla.models.target import Target

LAYERS = [10, 15, 20, 22, 26]
TEMPLATE = "Summary of the following text: <text>{explanation}</text> <summary>"
WORDS = (1, 2, 3, 6, 12, 25)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--dtype", default="bfloat16")
    arguments = parser.parse_args()
    sizes = {"warm_start": 60, "validation": 20} if arguments.quick else {"warm_start": 2000, "validation": 500}
    target = Target.from_pretrained("smollm2", LAYERS[-1], arguments.dtype)
    source = TextSource(
        "sotu", {"warm_start": 0.7, "validation": 0.3}, "nla", "text", None, None, 200, 600, 5, None
    )  # fmt: skip
    parts = {split: read(target, source, split, count) for split, count in sizes.items()}
    rows = {}
    for words in WORDS[:2] if arguments.quick else WORDS:
        rows[f"last {words} words, as they are"] = lambda context, lines, words=words: last(context, words)
    prompts: dict[str, Callable[[str, list[str]], str]] = {
        "topic, next, read": lambda context, lines: "\n".join(lines),
        "topic, read, next": lambda context, lines: "\n".join([lines[0], lines[2], lines[1]]),
        "topic": lambda context, lines: lines[0],
        "next": lambda context, lines: lines[1],
        "read": lambda context, lines: lines[2],
    }
    rows |= {name: lambda c, lines, f=f: TEMPLATE.replace("{explanation}", f(c, lines)) for name, f in prompts.items()}
    figures: dict[str, dict[int, float]] = {}
    for name, text in rows.items():
        states = {split: state(target, [text(*row) for row in part["rows"]]) for split, part in parts.items()}
        figures[name] = {
            layer: ridge_fve(
                {split: values[:, index] for split, values in states.items()},
                {split: part["activation"][:, index] for split, part in parts.items()},
            )
            for index, layer in enumerate(LAYERS)
        }
        print(f"{name:32s}", "  ".join(f"block {layer}: {fve:.3f}" for layer, fve in figures[name].items()), flush=True)
    folder: Path = ROOT / ("runs/benchmarks" if arguments.quick else "benchmarks/results")
    folder.mkdir(parents=True, exist_ok=True)
    command = "python benchmarks/text_layout.py"
    written = {"command": command, "machine": cpu_model(), "positions": sizes, "fve": figures}
    (folder / "text_layout.json").write_text(json.dumps(written, indent=1) + "\n")
    return 0


def read(target: Target, source: TextSource, split: str, count: int) -> dict[str, Any]:
    """Activations of positions, with the context of each and its three sentences."""
    documents = sorted(source.documents(split), key=lambda document: keyed_seed("layout", document.id))
    prepared, _ = prepare(documents[: math.ceil(count / 6)], target.tokenizer, ReadingPlan(6, 3, 256, 0))
    activation = []
    for first in range(0, len(prepared), 32):
        batch = collate([(item, 0) for item in prepared[first : first + 32]], pad_id(target.tokenizer))
        activation.append(target(batch.tokens, batch.mask, batch.row, batch.position, layers=LAYERS).float())
    contexts = [item.document.text[:end] for item in prepared for end in item.ends]
    teacher = TargetTeacher("smollm2", about=4, quoted=6, expected=3, continued=8, dtype="bfloat16")
    texts = teacher.explain([Passage("", context) for context in contexts])
    lines = [(text.text or "").split("\n") for text in texts]
    whole = [index for index, three in enumerate(lines) if len(three) == 3]
    return {
        "activation": torch.cat(activation)[whole],
        "rows": [(contexts[index], lines[index]) for index in whole],
    }


def last(text: str, words: int) -> str:
    """Its last words as they are, at least its last character."""
    return " ".join(text.split(" ")[-words:]) or text[-1:]


@torch.no_grad()
def state(target: Target, texts: list[str]) -> Tensor:
    """The state of each text's last token, after every block of LAYERS."""
    tokens = [list(target.tokenizer(text)["input_ids"]) for text in texts]
    values = torch.zeros(len(texts), len(LAYERS), target.d_model)
    for bucket in length_buckets([len(row) for row in tokens], 4096):
        ids, mask = padded([tokens[index] for index in bucket], pad_id(target.tokenizer))
        rows = torch.arange(len(bucket))
        values[torch.tensor(bucket)] = target(ids, mask.bool(), rows, mask.sum(1) - 1, layers=LAYERS).float()
    return values


def ridge_fve(inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> float:
    """On the held-out rows, with the best of five penalties."""
    equations = NormalEquations.empty(inputs["warm_start"].shape[-1], outputs["warm_start"].shape[-1])
    equations.add(inputs["warm_start"], normalized_activations(outputs["warm_start"]))
    found = []
    for head in equations.solve():
        fve = FractionOfVarianceExplained(outputs["validation"].shape[-1])
        fve.update(inputs["validation"] @ head.T.float(), outputs["validation"])
        found.append(float(fve.compute()["fve"]))
    return max(found)


if __name__ == "__main__":
    raise SystemExit(main())
