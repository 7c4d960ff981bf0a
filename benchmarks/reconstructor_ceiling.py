"""What texts allow on the embedded world: a fresh reconstructor trained and tested on texts of known quality.

    python benchmarks/reconstructor_ceiling.py

`true`: every fact that the context has revealed. `guessed`: the same, and a random value for each fact that it has
not. Between the two lies what a verbalizer loses that always names every kind. Whether it could know better is measured
by a linear probe for each kind: has the context revealed the fact? One core, minutes.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from nla import Target
from nla.core.fve import FractionOfVarianceExplained
from nla.core.objectives import normalize, reconstruction_error
from nla.core.records import ActivationBatch, TokenBatch
from nla.data.datamodule import NLADataModule
from nla.data.document_rows import DocumentReader
from nla.data.documents import ReadingPlan
from nla.data.warm_start import SourceTexts
from nla.data.world import WorldSource
from nla.data.world.statements import describe
from nla.data.world.vocabulary import KINDS
from nla.models.reconstructor import Reconstructor

ROOT = Path(__file__).parents[1]


def read(target: Target, data: NLADataModule, split: str, number: int) -> ActivationBatch:
    """One batch of a split with its activations."""
    batch = data.batch(split, 0, number)
    assert isinstance(batch, TokenBatch)
    activation = target(batch.tokens, batch.mask, batch.row, batch.position)
    return ActivationBatch(activation, batch.document, batch.position, batch.text, None)


def texts(source: WorldSource, batch: ActivationBatch, guess: bool) -> list[str]:
    """All known facts of each context, in the warm start's order."""
    found = []
    for document, text in zip(batch.document, batch.text, strict=True):
        rng = random.Random(f"{document}/{len(text)}")
        facts = dict(source.facts(document, text))
        if guess:
            facts |= {k: rng.choice(values) for k, values in KINDS.items() if k not in facts and k != "ending"}
        found.append(describe(facts, len(facts), rng))
    return found


def revealed(source: WorldSource, batches: list[ActivationBatch], kind: str) -> Tensor:
    """1 where the context has revealed a fact of this kind."""
    pairs = [pair for batch in batches for pair in zip(batch.document, batch.text, strict=True)]
    return torch.tensor([float(kind in dict(source.facts(*pair))) for pair in pairs])


def probe(source: WorldSource, train: list[ActivationBatch], test: list[ActivationBatch], kind: str) -> float:
    """Balanced accuracy of a logistic regression on the normalised activation, on documents it has not seen."""
    inputs = [normalize(torch.cat([batch.activation for batch in part]), 1.0) for part in (train, test)]
    wanted, truth = (revealed(source, part, kind) for part in (train, test))
    torch.manual_seed(0)
    linear = nn.Linear(inputs[0].shape[1], 1)
    optimizer = torch.optim.AdamW(linear.parameters(), lr=0.1, weight_decay=1e-3)
    for _ in range(400):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(linear(inputs[0]).squeeze(1), wanted).backward()
        optimizer.step()
    found = (linear(inputs[1]).squeeze(1) > 0).float()
    return float(torch.stack([(found == truth)[truth == side].float().mean() for side in (0, 1)]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/reconstructor_ceiling.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = yaml.safe_load((ROOT / "conf/model/world.yaml").read_text())
    settings = yaml.safe_load((ROOT / "conf/data/world.yaml").read_text())
    source = WorldSource({"joint": 6000, "validation": 256})
    target = Target.from_pretrained("world", model["default_layer"])
    plan = ReadingPlan(
        positions_per_document=1, min_context=settings["min_context"], max_tokens=settings["max_tokens"], seed=0
    )
    data = NLADataModule(
        DocumentReader(source, target.tokenizer, plan, SourceTexts(source)),
        split="joint",
        explanations=False,
        batch_size=arguments.batch,
        validation_documents=None,
        seed=0,
        num_workers=0,
    )
    held_out = [read(target, data, "validation", number) for number in range(256 // arguments.batch)]
    truth = torch.cat([batch.activation for batch in held_out])
    figures: dict[str, float] = {}
    for name, guess in (("true", False), ("guessed", True)):
        torch.manual_seed(0)
        started = time.perf_counter()
        reconstructor = Reconstructor.from_target("world", target.layer, model["templates"]["reconstructor"])
        optimizer = torch.optim.AdamW(reconstructor.parameters(), lr=1e-3, weight_decay=0.0)
        rate = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / 10) * (1 - 0.9 * step / arguments.steps)
        )
        for step in range(arguments.steps):
            batch = read(target, data, "joint", step)
            prediction = reconstructor(*reconstructor.tokenize(texts(source, batch, guess)))
            optimizer.zero_grad()
            reconstruction_error(prediction, batch.activation, truth.shape[1] ** 0.5).mean().backward()
            torch.nn.utils.clip_grad_norm_(reconstructor.parameters(), 1.0)
            optimizer.step()
            rate.step()
        written = [text for batch in held_out for text in texts(source, batch, guess)]
        fve = FractionOfVarianceExplained(truth.shape[1])
        fve.update(reconstructor.reconstruct(written), truth)
        figures[name] = float(fve.compute()["fve"])
        print(f"{name}: FVE {figures[name]:.3f} on {len(truth)} activations, {time.perf_counter() - started:.0f} s")
    seen = [read(target, data, "joint", number) for number in range(40)]
    kinds = [kind for kind in KINDS if kind not in ("genre", "tense", "hero", "ending")]  # known at once
    probes = {kind: probe(source, seen, held_out, kind) for kind in kinds}
    print("revealed or not, balanced accuracy:", {kind: round(value, 3) for kind, value in probes.items()})
    record = {"steps": arguments.steps, "batch": arguments.batch, "fve": figures, "revealed_probe": probes}
    arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
