"""The released run's joint step on one GPU: Qwen2.5-7B's real config with random weights in bf16, adapters on one base.

    python benchmarks/gpu_joint.py                      # 64 activations x 8 samples, cap 150, prompt of 125 tokens
    python benchmarks/gpu_joint.py --quick --device cpu # the same path at a size for a test

The released stack needs 47 s for this step on sixteen H100s. Random weights never stop, so a part of the vocabulary is
declared to stop them (`tasks.stopping`); the reconstructor reads random tokens of the same lengths. Beside the seconds
of rollout, scoring and update stand what the hardware allows: bytes of weights and cache over the memory's rate in
decoding, operations over the matrix units' rate elsewhere.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from models import small_tokenizer
from tasks import Task, stopping
from timing import options, record
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from nla.adapters import add_lora
from nla.backbone import body, truncated, twin
from nla.objectives import group_advantages, kl_to_reference, policy_gradient_loss, reconstruction_error
from nla.prompts import MARKERS, VerbalizerPrompt
from nla.reconstructor import Reconstructor
from nla.verbalizer import Verbalizer

BYTES_PER_SECOND, OPERATIONS_PER_SECOND = 4.3e12, 790e12  # of an H200, in bf16
PROMPT, PLACE = 125, 105
TEMPLATE = "Summary of the following text: <text>{explanation}</text> <summary>"


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--activations", type=int, default=64)
    parser.add_argument("--mean-length", type=float, default=110.0)
    parser.add_argument("--micro-batch", type=int, default=32, help="samples per backward pass")
    parser.add_argument("--compiled", action="store_true", help="decode step through torch.compile")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    config = configuration(arguments.quick)
    if arguments.quick:
        arguments.activations, arguments.mean_length, arguments.micro_batch = 2, 6.0, 8
    cap = 12 if arguments.quick else 150
    verbalizer, reconstructor = halves(config, device)
    parameters = [p for p in (*verbalizer.parameters(), *reconstructor.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    activation = torch.randn(arguments.activations, config.hidden_size, device=device)
    task = stopping(task_of(verbalizer, activation, cap), arguments.mean_length)
    verbalizer.stop_ids = task.stop_ids
    step = Step(verbalizer, reconstructor, optimizer, activation, cap, arguments)
    taken = [step() for _ in range(arguments.repeats + 1)][1:]
    seconds = {part: statistics.median(run[part] for run in taken) for part in ("rollout", "scoring", "update")}
    figures = {
        "seconds": seconds,
        "step": sum(seconds.values()),
        **accounts(step, config, seconds),
        "device": name(device),
    }
    record("gpu_joint", arguments, [], figures)
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


def halves(config: Qwen2Config, device: torch.device) -> tuple[Verbalizer, Reconstructor]:
    """Both on one frozen base, read at two thirds of the depth."""
    with torch.device(device):
        torch.set_default_dtype(torch.bfloat16)
        base: PreTrainedModel = Qwen2ForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
    tokenizer, layer = small_tokenizer(), 2 * config.num_hidden_layers // 3
    decoder = add_lora(truncated(body(twin(base)), layer), rank=64, alpha=128)
    reconstructor = Reconstructor(decoder, tokenizer, TEMPLATE)
    model = add_lora(twin(base), rank=64, alpha=128)
    marker = tokenizer.encode(MARKERS[0], add_special_tokens=False)[0]
    tokens = [marker if place == PLACE else 3 + place for place in range(PROMPT)]
    prompt = VerbalizerPrompt(tokens, PLACE, MARKERS[0], marker, tokens[PLACE - 1], tokens[PLACE + 1], 1)
    return Verbalizer(model, tokenizer, prompt, 150.0).to(device), reconstructor.to(device)


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
        verbalizer.freeze_reference()

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

        completions = timed(
            "rollout",
            lambda: self.verbalizer.sample(
                self.activation, samples, max_new_tokens=self.cap, compiled=self.arguments.compiled
            ),
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
        with self.verbalizer.reference() as reference:
            anchor = reference(activation, tokens, mask)
        over = len(self.mask)
        policy, _ = policy_gradient_loss(log_probs, group_advantages(-error.detach(), 8), mask, "sample_mean", over)
        kl = kl_to_reference(log_probs, anchor, mask, "k3", 12.0, "sample_mean", over)
        (policy + 0.01 * kl + error.sum() / over).backward()


def accounts(step: Step, config: Qwen2Config, seconds: dict[str, float]) -> dict[str, float]:
    """Tokens per second, the share of the matrix units' rate, peak memory, and the physical limits."""
    block = sum(p.numel() for n, p in step.verbalizer.model.named_parameters() if "layers.0." in n and "lora" not in n)
    blocks, head = config.num_hidden_layers * block, config.vocab_size * config.hidden_size
    part = (2 * config.num_hidden_layers // 3 + 1) / config.num_hidden_layers
    tokens, rows, steps = float(step.mask.sum()), len(step.mask), step.mask.shape[1]
    prompts = len(step.activation) * PROMPT
    width = 2 * (config.num_key_value_heads or 1) * (config.hidden_size // config.num_attention_heads)
    cache = 2 * width * config.num_hidden_layers * (tokens * steps / 2)  # bytes read over all steps, about
    decode = 2 * (blocks + head) * tokens
    # policy: forward, and backward through activations only (the base is frozen); reference: forward
    update = (2 + 2 + 2) * (blocks * (tokens + prompts) + head * tokens) + 2 * part * blocks * tokens
    scoring = 2 * part * blocks * tokens
    device = step.activation.device
    return {
        "tokens": tokens,
        "samples": rows,
        "tokens_per_second": tokens / seconds["rollout"],
        "limit_rollout": max((2 * (blocks + head) * steps + cache) / BYTES_PER_SECOND, decode / OPERATIONS_PER_SECOND),
        "limit_scoring": scoring / OPERATIONS_PER_SECOND,
        "limit_update": update / OPERATIONS_PER_SECOND,
        "utilisation": (decode + scoring + update) / sum(seconds.values()) / OPERATIONS_PER_SECOND,
        "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0,
    }


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


if __name__ == "__main__":
    sys.exit(main())
