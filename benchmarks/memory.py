"""Peak memory of a joint step: full training, LoRA on one shared base, LoRA on separate copies.

    python benchmarks/memory.py

A random Llama of 60M parameters in fp32; target, pair, reference, gradients and optimizer included. Each way in a
process of its own: its peak resident memory minus that after the imports. Nothing is timed.
"""

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from timing import Row, options, record

LORA = {"rank": 16, "alpha": 32}
WAYS = {
    "shared": "LoRA on one shared base",
    "separate": "LoRA on separate copies (target, verbalizer, reconstructor)",
    "full": "full training",
}
TEXT = "what a random model writes does not parse, so this is scored instead"


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--model", type=Path, help="folder of a causal LM, instead of the random Llama")
    parser.add_argument("--way", choices=["build", *WAYS], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way is not None:
        print(json.dumps(build(arguments) if arguments.way == "build" else step(arguments)))
        return 0
    # this process imports no torch: on Linux a child's peak starts at the size of the process that forked it
    with tempfile.TemporaryDirectory() as scratch:
        folder = str(arguments.model or scratch)
        if arguments.model is None:
            measured(arguments, "build", folder)
        peaks = {way: [measured(arguments, way, folder) for _ in range(arguments.repeats)] for way in WAYS}
    middle = {way: sorted(found, key=lambda one: one["mebibytes"])[len(found) // 2] for way, found in peaks.items()}
    batch, samples, cap = shape(arguments.quick)
    title = f"peak memory of a joint step, {batch} x {samples} samples, up to {cap} tokens, {WAYS['shared']}"
    record("memory", arguments, [row(title, way, middle) for way in ("separate", "full")], peaks)
    return 0


def row(title: str, way: str, peaks: dict[str, dict[str, float]]) -> Row:
    ours, other = peaks["shared"]["mebibytes"], peaks[way]["mebibytes"]
    named = {"key": f"memory_{way}", "what": title, "against": WAYS[way], "unit": "MiB"}
    return named | {"ours": ours, "other": other, "ratio": other / ours}


def shape(quick: bool) -> tuple[int, int, int]:
    """Activations, samples, new tokens."""
    return (2, 2, 8) if quick else (4, 4, 32)


def measured(arguments: argparse.Namespace, way: str, folder: str) -> dict[str, float]:
    words = [sys.executable, __file__, "--way", way, "--model", folder]
    words += ["--quick"] if arguments.quick else []
    words += [] if arguments.core is None else ["--core", str(arguments.core)]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def build(arguments: argparse.Namespace) -> dict[str, float]:
    """Save the random model and a tokenizer."""
    from models import SIXTY_MILLION, TINY, random_llama, small_tokenizer

    random_llama(TINY if arguments.quick else SIXTY_MILLION).save_pretrained(arguments.model)
    small_tokenizer().save_pretrained(arguments.model)
    return {}


def step(arguments: argparse.Namespace) -> dict[str, float]:
    """One joint step in this process."""
    import joint_step
    import torch
    from timing import pin

    pin(arguments.core)
    before = peak()
    target, nla = models_of(arguments.way, str(arguments.model))
    batch, samples, cap = shape(arguments.quick)
    activation = torch.randn(batch, target.d_model, generator=torch.Generator().manual_seed(0))
    weights = {p.data_ptr(): p for module in (target, nla) for p in module.parameters()}
    for weight in weights.values():
        weight.sum()  # weights are mapped from their file and become resident when they are touched
    ours = joint_step.shared(nla)

    def rollout(*parts: Any) -> Any:
        completions = ours.rollout(*parts)
        return dataclasses.replace(completions, explanation=[TEXT] * len(completions))

    optimizer, setting = joint_step.optimizer_of(nla), joint_step.setting_of(samples, cap)
    joint_step.timed([], dataclasses.replace(ours, rollout=rollout), nla, optimizer, activation, setting)
    weight_bytes = sum(weight.nbytes for weight in weights.values())
    return {"mebibytes": peak() - before, "weights_mebibytes": weight_bytes / 2**20}


def models_of(way: str, model: str) -> tuple[Any, Any]:
    """Target, read at half depth, and pair. Separate copies: each of the three loads weights of its own."""
    from nla.models.backbone import depth, load_model, load_tokenizer
    from nla.models.pair import NLA
    from nla.models.prompts import Templates
    from nla.models.reconstructor import Reconstructor
    from nla.models.target import Target

    loaded = load_model(model)
    layer = max(0, depth(loaded) // 2 - 1)
    target = Target(loaded, load_tokenizer(model), layer)
    templates = Templates("Describe: <concept>{injection_char}</concept>", "<text>{explanation}</text><summary>")
    adapter = None if way == "full" else LORA
    nla = NLA.from_target(model, layer, templates, adapter=adapter, base=loaded if way == "shared" else None)
    if way == "separate":
        nla.reconstructor = Reconstructor.from_target(model, layer, templates.reconstructor, adapter=adapter)
    return target, nla


def peak() -> float:
    """Largest resident memory of this process so far, in MiB. Linux counts kilobytes, macOS bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    sys.exit(main())
