"""Stages on a tiny random model, driven by a real Lightning Trainer."""

import dataclasses
import functools
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from nla.core.records import ActivationBatch, Completions, Rollout
from nla.models.pair import NLA
from nla.models.sampling import SamplingParams
from nla.models.target import Target
from nla.training.rewards import KLToReference, Reward
from nla.training.stages import JointStage, ReconstructorStage
from nla.training.stages.joint import Terms

TEXTS = ["It rains.", "Tom walks to the town.", "The dog jumps.", "A lazy fox."]


def batch(rows: int = 4, seed: int = 0) -> ActivationBatch:
    activation = torch.randn(rows, 32, generator=torch.Generator().manual_seed(seed))
    return ActivationBatch(activation, [f"d{i}" for i in range(rows)], torch.arange(rows), TEXTS[:rows], TEXTS[:rows])


def fit(stage: Any, steps: int, batches: list[ActivationBatch] | None = None, **more: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu", "devices": 1, "max_steps": steps, "max_epochs": -1, "logger": False,
        "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
        "num_sanity_val_steps": 0, "check_val_every_n_epoch": None, "val_check_interval": steps,
    }  # fmt: skip
    trainer = Trainer(**{**settings, **more})
    batches = batches or [batch()]
    loader = DataLoader(batches * (steps // len(batches) + 1), batch_size=None)
    trainer.fit(stage, loader, DataLoader([batch(seed=1)], batch_size=None))
    return trainer


def options(steps: int, lr: float = 1e-2, **more: Any) -> dict[str, Any]:
    optimizer = functools.partial(torch.optim.AdamW, lr=lr, weight_decay=0.0)
    defaults = {
        "warmup_steps": 0, "final_fraction": 1.0, "clip_norm": 1.0, "micro_batch_size": 16,
        "activation_checkpointing": False, "gather": "once", "skipped_in_a_row": 5, "seed": 0,
    }  # fmt: skip
    return {"steps": steps, "optimizer": optimizer, **defaults, **more}


def make_reward(kind: Any = "neg_error", **changes: Any) -> Reward:
    """Minus the error, without penalties, unless `changes` say otherwise."""
    plain = Reward(
        kind, "standardized", "whole", 0.0, near_cap=0.0, near_cap_tokens=16, repetition=0.0, repetition_tokens=4
    )
    return dataclasses.replace(plain, **changes)


def make_kl(coefficient: float, **changes: Any) -> KLToReference:
    return dataclasses.replace(KLToReference(coefficient, "k3", clamp=12.0, schedule="constant", final=0.0), **changes)


# what the reconstructor's stage takes besides
HEAD: dict[str, Any] = {"head_start": "identity", "head_texts": 64, "error": "plain", "reworded": 0.0}


def reconstructor(nla: NLA, target: Target, **more: Any) -> ReconstructorStage:
    return ReconstructorStage(nla, target, max_new_tokens=8, **{**HEAD, **more})


def joint(nla: NLA, target: Target, steps: int = 1, **more: Any) -> JointStage:
    settings: dict[str, Any] = {
        "sampling": SamplingParams.policy(12, group_size=4),
        "reward": make_reward(),
        "kl": make_kl(0.05),
        "length": "sample_mean",
        "reconstructor_updates": 1,
        "frozen_reconstructor": False,
        "gate_rows": 0,
        "reworded": 0.0,
        "error": "plain",
    }
    return JointStage(nla, target, **options(steps, **{**settings, **more}))


def terms_of(stage: JointStage, rollout: Rollout, counts: dict[str, torch.Tensor]) -> Terms:
    """The terms of a rollout in one micro-batch, the reference's log-probs included."""
    return stage.terms(stage.with_reference(rollout, len(rollout.completions)), counts)


def weights(module: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor], atol: float = 0.0) -> bool:
    return all(torch.allclose(a, b, rtol=0, atol=atol) for a, b in zip(one, other, strict=True))


def completions_of(nla: NLA, texts: list[str | None]) -> Completions:
    """Completions as if sampled; None becomes an answer without tags."""
    tokens, mask = nla.verbalizer.respond([text or "x" for text in texts])
    return Completions(tokens, mask, texts)


ALL = {"samples": torch.tensor(8.0), "tokens": torch.tensor(80.0), "well_formed": torch.tensor(8.0)}
