"""A run small enough to be stopped and resumed many times, and callbacks that watch it and stop it."""

import hashlib
import json
import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from nla.config.check import check_train
from nla.config.compose import compose
from nla.data import Document
from nla.training import program as app

SAID = ["It rains.", "Tom walks.", "A dog jumps.", "The fox."]


class Diary:
    """Documents of two dozen words, each with one of four short explanations."""

    def __init__(self, size: int) -> None:
        self.size = size

    def documents(self, split: str) -> Sequence[Document]:
        words = "the quick brown fox jumps over the lazy dog and Tom walks to the harbour in the rain".split()
        texts = [" ".join(words[(n * 3 + i * (n % 5 + 1)) % len(words)] for i in range(16)) for n in range(self.size)]
        return [Document(f"{split}-{n}", f"{split} {n} {text}") for n, text in enumerate(texts)]

    def explanation(self, document: Document, end: int, seed: int) -> str | None:
        return SAID[len(document.text) % len(SAID)]


class Dropout(Callback):
    """Dropout in everything that is trained, so that a step depends on torch's random state."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        for half in pl_module.halves().values():
            for module in half.modules():
                if hasattr(module, "attention_dropout"):
                    module.attention_dropout = 0.2
            half.train()


class Trace(Callback):
    """A line per step: the rows read, the metrics, draws from the random states, a hash of everything that resumes.

    Python's own random state is left out inside the tests' process, where beartype draws from it.
    """

    def __init__(self, path: str, python: bool = False) -> None:
        self.path, self.python = Path(path), python

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        stable = {k: float(v) for k, v in trainer.callback_metrics.items() if "seconds" not in k}
        line = {
            "step": trainer.global_step,
            "rows": [f"{d}:{p}" for d, p in zip(batch.document, batch.position.tolist())],
            "metrics": {k: v for k, v in stable.items() if "validation" not in k},
            "draws": [float(np.random.rand()), float(torch.rand(())), random.random() if self.python else 0.0],
            "state": fingerprint(pl_module, trainer),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


class Stop(Callback):
    """Sends this process a signal in the middle of a moment: `step`, `validation` or `rollout`, at a given step."""

    def __init__(self, step: int, moment: str = "step", number: int = int(signal.SIGTERM), rank: int = 0) -> None:
        self.step, self.moment, self.number, self.rank = step, moment, number, rank

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == self.step and trainer.global_rank == self.rank:
            if self.moment == "twice":
                os.kill(os.getpid(), self.number)
                Path("noted").touch()
                os.kill(os.getpid(), self.number)
            if self.moment == "step":
                os.kill(os.getpid(), self.number)
            if self.moment == "rollout":
                head = pl_module.nla.verbalizer.model.get_output_embeddings()

                def kill(*_: Any) -> None:
                    handle.remove()
                    os.kill(os.getpid(), self.number)

                handle = head.register_forward_hook(kill)

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
        if self.moment == "validation" and trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


class Poison(Callback):
    """From this step on no gradient of the reconstructor's head is finite."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == self.step:
            pl_module.nla.reconstructor.head.weight.register_hook(lambda gradient: gradient * torch.inf)


def fingerprint(module: nn.Module, trainer: Any) -> str:
    """A hash of weights, optimizer, schedule and random states."""
    whole = hashlib.blake2b()
    states = [module.state_dict(), *(o.state_dict() for o in trainer.optimizers)]
    states += [c.scheduler.state_dict() for c in trainer.lr_scheduler_configs]
    states += [torch.get_rng_state(), np.random.get_state()[1]]
    _feed(whole, states)
    return whole.hexdigest()[:16]


def _feed(whole: Any, node: Any) -> None:
    if isinstance(node, torch.Tensor):
        whole.update(node.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(node, dict):
        for key, value in node.items():
            whole.update(str(key).encode())
            _feed(whole, value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            _feed(whole, value)
    else:
        whole.update(repr(node).encode())


def overrides(model: str, name: str, stage: str, steps: int = 20, size: int = 9, **more: Any) -> list[str]:
    """One stage on a tiny model: 9 documents, 2 a step, so that epochs end inside a batch. `more`: a__b for a.b."""
    batch = {"verbalizer": 8, "reconstructor": 8, "joint": 2}[stage]
    settings = {
        "model": "local", "model.path": model, "layer.index": 1, "name": name, "stages": f"[{stage}]",
        "+data.source": f"{{_target_: support.runs.Diary, size: {size}}}", "data.min_context": 4,
        "data.validation_documents": 2,
        "sampling.max_new_tokens": 12, "hardware.micro_batch_size": 8,
        f"stage.{stage}.steps": steps, f"stage.{stage}.data.batch_size": batch,
        f"stage.{stage}.trainer.val_check_interval": 7, f"stage.{stage}.trainer.log_every_n_steps": 1,
        f"stage.{stage}.data.positions_per_document": {"joint": 1}.get(stage, 4),
        "callbacks.samples": "null", "callbacks.progress.line_every": 1000, "logger.tensorboard": "null",
        "callbacks.checkpoint.every": 50,
        "callbacks.alarms.stop_on": "[]",  # dropout makes the policy that is trained another one than that sampled
        "stage.joint.gate_rows": 0,
        "+callbacks.trace": f"{{_target_: support.runs.Trace, path: {name}.jsonl}}",
        "+callbacks.dropout": "{_target_: support.runs.Dropout}",
    }  # fmt: skip
    keys = {key.replace("__", "."): value for key, value in more.items()}
    return ["~data.source", *(f"{key}={value}" for key, value in {**settings, **keys}.items())]


def warm_pair(model: str) -> list[str]:
    """Overrides of a run whose verbalizer says one of four sentences, well-formed: something to reward."""
    quiet = {
        "stage__verbalizer__trainer__val_check_interval": 1000, "stage__verbalizer__warmup_steps": 1,
        "stage__verbalizer__optimizer__lr": 1e-2,
    }  # fmt: skip
    return overrides(model, "warm", "verbalizer", 90, **quiet, **{"+callbacks__dropout": "null"})


def stop(step: int, moment: str = "step", number: int = int(signal.SIGTERM)) -> str:
    return f"+callbacks.stop={{_target_: support.runs.Stop, step: {step}, moment: {moment}, number: {number}}}"


def train(*arguments: str) -> Path:
    return app.train(check_train(compose("train", arguments)))


def trace(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(f"{name}.jsonl").read_text().splitlines()]
