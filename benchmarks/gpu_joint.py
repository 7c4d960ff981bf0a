"""The released run's joint step on one GPU: Qwen2.5-7B's real config with random weights in bf16.

    python benchmarks/gpu_joint.py                      # 64 activations x 8 samples, cap 150, prompt of 125 tokens
    python benchmarks/gpu_joint.py --full               # all weights trained, not adapters on one base
    python benchmarks/gpu_joint.py --quick --device cpu # the same path at a size for a test

The released stack needs 47 s for this step on sixteen H100s. Random weights never stop, so a part of the vocabulary is
declared to stop them (`tasks.stopping`); the reconstructor reads random tokens of the same lengths. Beside the seconds
of rollout, scoring and update it prints what the hardware allows: bytes of weights and cache over the memory's rate in
decoding, operations over the matrix units' rate elsewhere, both rates measured in the same run.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from models import small_tokenizer
from plain_rollout import generate
from tasks import Task, stopping
from timing import Row, options, record
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from nla.core.objectives import group_advantages, kl_to_reference, policy_gradient_loss, reconstruction_error
from nla.models.backbone import body, shared_copy, truncated
from nla.models.lora import add_lora
from nla.models.prompts import MARKERS, VerbalizerPrompt
from nla.models.reconstructor import Reconstructor
from nla.models.reference import Reference
from nla.models.sampling import SamplingParams
from nla.models.verbalizer import Verbalizer
from nla.training.parallel import checkpoint_activations

PROMPT, PLACE = 125, 105
TEMPLATE = "Summary of the following text: <text>{explanation}</text> <summary>"


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--activations", type=int, default=64)
    parser.add_argument("--mean-length", type=float, default=110.0)
    parser.add_argument("--micro-batch", type=int, default=32, help="samples per backward pass")
    parser.add_argument("--no-autocast", action="store_true", help="not as hardware=gpu does: adapters in fp32")
    parser.add_argument("--no-graphs", action="store_true", help="decode step not as a CUDA graph")
    parser.add_argument("--full", action="store_true", help="train all weights, instead of adapters on one frozen base")
    parser.add_argument("--checkpointing", action="store_true", help="run blocks again in the backward pass")
    parser.add_argument("--generate", action="store_true", help="time one rollout by `generate`, too")
    parser.add_argument("--profile", type=Path, help="write where one more step's time on the device went")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    config = configuration(arguments.quick)
    if arguments.quick:
        arguments.activations, arguments.mean_length, arguments.micro_batch = 2, 6.0, 8
    cap = 12 if arguments.quick else 150
    rates = ceilings(device, arguments.quick)
    verbalizer, reconstructor = halves(config, device, arguments.full)
    if arguments.checkpointing:
        for half in (verbalizer, reconstructor):
            checkpoint_activations(half)
    parameters = [p for p in (*verbalizer.parameters(), *reconstructor.parameters()) if p.requires_grad]
    # so small that random weights keep the lengths that the stop tokens were chosen for
    optimizer = torch.optim.AdamW(parameters, lr=1e-9, fused=device.type == "cuda" or None)
    activation = torch.randn(arguments.activations, config.hidden_size, device=device)
    task = stopping(task_of(verbalizer, activation, cap), arguments.mean_length)
    verbalizer.stop_ids = task.stop_ids
    step = Step(verbalizer, reconstructor, optimizer, activation, cap, arguments)
    mixed = not (arguments.no_autocast or arguments.quick)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=mixed, cache_enabled=False)  # as Lightning's
    with autocast:
        taken = [step() for _ in range(arguments.repeats + 1)][1:]
    seconds = {part: statistics.median(run[part] for run in taken) for part in ("rollout", "scoring", "update")}
    figures = {
        "trained": "all weights" if arguments.full else "adapters of rank 64 on one base",
        "seconds": seconds,
        "step": sum(seconds.values()),
        **accounts(step, config, seconds, rates, arguments.full),
        "device": name(device),
    }
    rows: list[Row] = []
    with autocast:
        if arguments.profile:
            arguments.profile.write_text(profile(step))
        if arguments.generate:
            step.optimizer.zero_grad()
            rows.append(against_generate(task, figures, arguments.full))
    record("gpu_joint", arguments, rows, figures, "_full" if arguments.full else "", figures["device"])
    for key, value in figures.items():
        print(f"{key}: {value}")
    return 0


def configuration(quick: bool) -> Qwen2Config:
    """Qwen2.5-7B-Instruct's, or a small one of the same family."""
    if quick:
        return Qwen2Config(
            vocab_size=384,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    return Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )


def halves(config: Qwen2Config, device: torch.device, full: bool) -> tuple[Verbalizer, Reconstructor]:
    """Both on one frozen base, or each with weights of its own; the reconstructor has two thirds of the depth."""
    base, tokenizer, layer = random_model(config, device), small_tokenizer(), 2 * config.num_hidden_layers // 3
    if full:
        model, decoder = base, truncated(body(random_model(config, device)), layer)
    else:
        model = add_lora(shared_copy(base), rank=64, alpha=128)
        decoder = add_lora(truncated(body(shared_copy(base)), layer), rank=64, alpha=128)
    reconstructor = Reconstructor(decoder, tokenizer, TEMPLATE)
    marker = tokenizer.encode(MARKERS[0], add_special_tokens=False)[0]
    tokens = [marker if place == PLACE else 3 + place for place in range(PROMPT)]
    prompt = VerbalizerPrompt(tokens, PLACE, MARKERS[0], marker, tokens[PLACE - 1], tokens[PLACE + 1], 1)
    return Verbalizer(model, tokenizer, prompt, 150.0).to(device), reconstructor.to(device)


def random_model(config: Qwen2Config, device: torch.device) -> PreTrainedModel:
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return Qwen2ForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def task_of(verbalizer: Verbalizer, activation: Tensor, cap: int) -> Task:
    prompts = verbalizer.prompt_embeddings(activation).detach()
    return Task("gpu", "Qwen2.5-7B's shape", verbalizer.model, prompts, PLACE, 8, cap)


class Step:
    """One joint step, with the seconds of its parts."""

    def __init__(
        self,
        verbalizer: Verbalizer,
        reconstructor: Reconstructor,
        optimizer: torch.optim.Optimizer,
        activation: Tensor,
        cap: int,
        arguments: argparse.Namespace,
    ) -> None:
        self.verbalizer, self.reconstructor, self.optimizer = verbalizer, reconstructor, optimizer
        self.activation, self.cap, self.arguments = activation, cap, arguments
        self.mask = torch.zeros(0, dtype=torch.bool)
        self.reference = Reference(verbalizer)

    def __call__(self) -> dict[str, float]:
        seconds: dict[str, float] = {"rollout": 0.0, "scoring": 0.0, "update": 0.0}
        samples = 8

        def timed(part: str, run: Callable[[], Any]) -> Any:
            synchronize(self.activation.device)
            started = time.perf_counter()
            found = run()
            synchronize(self.activation.device)
            seconds[part] += time.perf_counter() - started
            return found

        graphs = False if self.arguments.no_graphs else None
        params = dataclasses.replace(SamplingParams.policy(self.cap, samples), graphs=graphs)
        completions = timed(
            "rollout",
            lambda: self.verbalizer.sample(self.activation, params),
        )
        self.mask = mask = completions.mask
        self.optimizer.zero_grad()
        for first in range(0, len(mask), self.arguments.micro_batch):
            part = slice(first, first + self.arguments.micro_batch)
            activation = self.activation[first // samples : (first + self.arguments.micro_batch) // samples]
            truth = activation.repeat_interleave(samples, 0)
            # whatever a random model wrote, the reconstructor reads as many tokens
            prediction = timed("scoring", lambda part=part: self.reconstructor(completions.tokens[part], mask[part]))
            error = reconstruction_error(prediction, truth, truth.shape[1] ** 0.5)
            timed(
                "update",
                lambda part=part, a=activation, e=error: self._backward(completions.tokens[part], mask[part], a, e),
            )
        timed("update", self.optimizer.step)
        return seconds

    def _backward(self, tokens: Tensor, mask: Tensor, activation: Tensor, error: Tensor) -> None:
        log_probs = self.verbalizer(activation, tokens, mask)
        with self.reference.active() as reference:
            expected = reference(activation, tokens, mask)
        over = len(self.mask)
        policy = policy_gradient_loss(log_probs, group_advantages(-error.detach(), 8), mask, "sample_mean", over)
        kl = kl_to_reference(log_probs, expected, mask, "k3", 12.0, "sample_mean", over)
        (policy + 0.01 * kl + error.sum() / over).backward()


def ceilings(device: torch.device, quick: bool) -> dict[str, float]:
    """Bytes per second that a copy reads and writes, operations per second of a product in bf16."""
    size = 512 if quick else 8192
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    large = torch.randn(size * size * (1 if quick else 16), device=device, dtype=torch.bfloat16)
    target = torch.empty_like(large)

    def seconds(run: Callable[[], Any], repeats: int = 10) -> float:
        taken = []
        for _ in range(repeats + 3):
            synchronize(device)
            started = time.perf_counter()
            run()
            synchronize(device)
            taken.append(time.perf_counter() - started)
        return statistics.median(taken[3:])

    return {
        "bytes_per_second": 2 * large.nbytes / seconds(lambda: target.copy_(large)),
        "operations_per_second": 2 * size**3 / seconds(lambda: one @ other),
    }


def against_generate(task: Task, figures: dict[str, Any], full: bool) -> Row:
    """The same rollout by `generate`, once."""
    synchronize(task.prompts.device)
    started = time.perf_counter()
    _, mask = generate(task.model, task.prompts, task.samples, task.stop_ids, task.pad_id, task.max_new_tokens)
    ours, other = figures["tokens_per_second"], float(mask.sum()) / (time.perf_counter() - started)
    shape = f"{len(task.prompts)} x {task.samples}, prompt {PROMPT}, up to {task.max_new_tokens} tokens, bfloat16"
    return {
        "key": "rollout_gpu",
        "what": f"rollout, random Qwen2.5-7B{'' if full else ' with adapters'}, {shape}",
        "against": "`generate(inputs_embeds=…)`, same batch",
        "unit": "useful tokens/s",
        "ours": ours,
        "other": other,
        "ratio": ours / other,
    }


def profile(step: "Step") -> str:
    """A table of what one step runs on the device, by time."""
    from torch.profiler import ProfilerActivity

    activity, key = ("CUDA", "cuda") if step.activation.is_cuda else ("CPU", "cpu")
    with torch.profiler.profile(activities=[getattr(ProfilerActivity, activity)]) as taken:
        seconds = step()
    table = taken.key_averages().table(sort_by=f"self_{key}_time_total", row_limit=40, max_name_column_width=110)
    return f"{seconds}\n{table}"


def accounts(
    step: Step, config: Qwen2Config, seconds: dict[str, float], rates: dict[str, float], full: bool
) -> dict[str, float]:
    """Tokens per second, the share of the matrix units' rate, peak memory, and the physical limits."""
    block = sum(p.numel() for n, p in step.verbalizer.model.named_parameters() if "layers.0." in n and "lora" not in n)
    blocks, head = config.num_hidden_layers * block, config.vocab_size * config.hidden_size
    part = (2 * config.num_hidden_layers // 3 + 1) / config.num_hidden_layers
    tokens, rows, steps = float(step.mask.sum()), len(step.mask), step.mask.shape[1]
    prompts = len(step.activation) * PROMPT
    width = 2 * (config.num_key_value_heads or 1) * (config.hidden_size // config.num_attention_heads)
    cache = 2 * width * config.num_hidden_layers * (tokens * steps / 2)  # bytes read over all steps, about
    decode = 2 * (blocks + head) * tokens
    # backward through activations, and to weights where they are trained
    backward = 4 if full else 2
    # policy: forward and backward; reference: forward; the reconstructor's backward
    update = (2 + backward + 2) * (blocks * (tokens + prompts) + head * tokens) + backward * part * blocks * tokens
    scoring = 2 * part * blocks * tokens
    device, operations = step.activation.device, rates["operations_per_second"]
    return {
        **rates,
        "tokens": tokens,
        "samples": rows,
        "tokens_per_second": tokens / seconds["rollout"],
        "limit_rollout": max((2 * (blocks + head) * steps + cache) / rates["bytes_per_second"], decode / operations),
        "limit_scoring": scoring / operations,
        "limit_update": update / operations,
        "utilisation": (decode + scoring + update) / sum(seconds.values()) / operations,
        "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0,
    }


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


if __name__ == "__main__":
    sys.exit(main())
