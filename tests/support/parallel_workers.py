"""What a rank of the multi-process tests does; runs in processes forked from a server that has the libraries loaded."""

import contextlib
import functools
import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.tensor import DTensor, distribute_tensor

from nla.config.trainer import check_ranks
from nla.core.records import ActivationBatch, Rollout
from nla.data.datamodule import NLADataModule
from nla.data.source import Document
from nla.errors import CheckpointError, ConfigError, TrainingError
from nla.evaluation import EvaluationSettings, activations, run
from nla.evaluation.program import evaluation_device
from nla.models.pair import NLA
from nla.models.sampling import SamplingParams
from nla.models.target import Target
from nla.training.callbacks.checkpointing import Checkpointing, StateFile
from nla.training.callbacks.rank_failure import RankFailure
from nla.training.callbacks.summary import Summary
from nla.training.optim import MuonAdamW
from nla.training.parallel import whole_pair
from nla.training.program import resume_point
from nla.training.stages import JointStage, ReconstructorStage, VerbalizerStage
from support.evaluation import ToySource, toy_data
from support.loaders import document_loader
from support.stages import HEAD, make_kl, make_reward

SPLITS = ("warm_start", "joint", "validation", "test")
STEPS = 3


class Uneven(ToySource):
    """Has nothing to say at some positions, which are then left out: ranks get rows of different number."""

    def explanation(self, document: Document, end: int, seed: int) -> str | None:
        cut = document.text[:end]
        return None if document.id[-1] in "357" and "with" not in cut else super().explanation(document, end, seed)


class Noting(JointStage):
    """Keeps the tokens that were sampled."""

    def collect(self, batch: ActivationBatch) -> Rollout:
        rollout = super().collect(batch)
        tokens = [
            row[:length].tolist() for row, length in zip(rollout.completions.tokens, rollout.completions.mask.sum(1))
        ]
        self.sampled = [*getattr(self, "sampled", []), tokens]
        return rollout


def on_rank(rank: int, ranks: int, port: int, strategy: str, work: str, task: str, out: str) -> None:
    """As torchrun starts it: the rank in the environment."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    if ranks > 1 or strategy == "fsdp2":
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
            "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
        }  # fmt: skip
    TASKS[task](rank, ranks, strategy, Path(work), Path(out))


def trainer_of(ranks: int, strategy: str, folder: Path, **options: Any) -> Trainer:
    chosen: Any = {"one": "auto", "ddp": "ddp"}.get(strategy) or ModelParallelStrategy()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    defaults: dict[str, Any] = {
        "max_steps": STEPS, "val_check_interval": STEPS, "logger": False, "enable_checkpointing": False,
    }  # fmt: skip
    return Trainer(
        accelerator="cpu", devices=ranks, strategy=chosen, max_epochs=-1, use_distributed_sampler=False,
        check_val_every_n_epoch=None, default_root_dir=folder, **quiet, **defaults | options,
    )  # fmt: skip


def data_of(target: Target, split: str, batch_size: int = 16) -> NLADataModule:
    return document_loader(
        Uneven(SPLITS, 13), target.tokenizer, split=split, explanations=split == "warm_start",
        batch_size=batch_size, positions_per_document=2, min_context=3, max_tokens=64, validation_documents=None,
        seed=0, num_workers=0,
    )  # fmt: skip


def stage_of(name: str, nla: NLA, target: Target, **more: Any) -> Any:
    options: dict[str, Any] = {
        "steps": STEPS, "optimizer": functools.partial(torch.optim.AdamW, lr=1e-3, eps=1e-4, weight_decay=0.0),
        "warmup_steps": 0, "final_fraction": 1.0, "clip_norm": 1.0, "micro_batch_size": 12 if name == "joint" else 3,
        "activation_checkpointing": False, "gather": "once", "skipped_in_a_row": 5, "seed": 0,
    }  # fmt: skip
    if name == "joint":
        options |= {
            "sampling": SamplingParams.policy(24, group_size=4), "reward": make_reward(), "kl": make_kl(0.05),
            "reconstructor_updates": 2, "frozen_reconstructor": True, "gate_rows": 0, "length": "sample_mean",
            "error": "plain", "reworded": 0.0,
        }  # fmt: skip
    else:
        options |= {"max_new_tokens": 24} | (HEAD if name == "reconstructor" else {})
    kind = {"verbalizer": VerbalizerStage, "reconstructor": ReconstructorStage, "joint": Noting}[name]
    return kind(nla, target, **options | more)


def every_stage(rank: int, ranks: int, strategy: str, work: Path, out: Path) -> None:
    strategy, _, gather = strategy.partition("-")
    for name in ("verbalizer", "reconstructor", "joint"):
        pair = NLA.from_pretrained(work / "pair")
        target = Target.from_pretrained(pair.base_model, pair.layer)
        stage = stage_of(name, pair, target, gather=gather or "once", activation_checkpointing=bool(gather))
        trainer = trainer_of(ranks, strategy, out)
        trainer.fit(stage, data_of(target, "joint" if name == "joint" else "warm_start"))
        plain = whole_pair(pair, lambda: NLA.from_pretrained(work / "pair"))
        if isinstance(stage, Noting):
            (out / f"tokens-{rank}.json").write_text(json.dumps(stage.sampled))
        if rank == 0:
            plain.save_pretrained(out / name)
            metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
            (out / f"{name}.metrics.json").write_text(json.dumps(metrics))
        if torch.distributed.is_initialized():
            torch.distributed.barrier()


def ridge_and_gate(rank: int, ranks: int, strategy: str, work: Path, out: Path) -> None:
    """The ridge head with the steps after it, a summary of the activations; and what the gate finds, open or closed."""
    pair = NLA.from_pretrained(work / "pair")
    target = Target.from_pretrained(pair.base_model, pair.layer)
    stage = stage_of("reconstructor", pair, target, head_start="ridge")
    trainer_of(ranks, strategy, out, callbacks=[Summary(20)]).fit(stage, data_of(target, "warm_start"))
    if rank == 0:
        pair.save_pretrained(out / "reconstructor")
    figures: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: figures.append(record.getMessage())
    logging.disable(logging.NOTSET)
    logger = logging.getLogger("nla.training.stages.joint")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    gated = stage_of("joint", pair, target, gate_rows=16)
    with contextlib.suppress(TrainingError):
        trainer_of(ranks, strategy, out, max_steps=1).fit(gated, data_of(target, "joint"))
    (out / f"gate-{rank}.json").write_text(json.dumps([line for line in figures if line.startswith("gate:")]))


def sampled(folder: Path, ranks: int) -> list[list[list[int]]]:
    """The tokens of every sample of every step, all ranks together."""
    parts = [json.loads((folder / f"tokens-{rank}.json").read_text()) for rank in range(ranks)]
    return [[row for part in parts for row in part[step]] for step in range(STEPS)]


def short_of_memory(rank: int, ranks: int, strategy: str, work: Path, out: Path) -> None:
    """A joint step of plain gradient descent, in which the last rank has no memory for its third micro-batch.

    `ddp-sampling`: it has memory for the whole step, but not to sample more than two activations at a time.
    `fsdp2-told`: rank 0 looks at nothing, and hears from gloo that the connection was closed.
    """
    strategy, _, enough = strategy.partition("-")
    sys.stderr = (out / f"stderr-{rank}").open("w")
    pair = NLA.from_pretrained(work / "pair")
    target = Target.from_pretrained(pair.base_model, pair.layer)
    plain = {"optimizer": functools.partial(torch.optim.SGD, lr=1.0), "clip_norm": 1e9, "micro_batch_size": 8}
    stage = stage_of("joint", pair, target, reconstructor_updates=1, **plain)
    usual, passes = stage.manual_backward, []

    def backward(loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        usual(loss, *args, **kwargs)
        passes.append(stage.micro_batch_size)
        if len(passes) == 3 and rank == ranks - 1 and enough in ("", "told"):
            raise torch.OutOfMemoryError("CUDA out of memory")

    sample, sampled = pair.verbalizer.sample, []

    def sample_few(activation: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(activation) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sampled.append(len(activation))
        return sample(activation, *args, **kwargs)

    stage.manual_backward = backward
    if enough == "sampling" and rank == ranks - 1:
        pair.verbalizer.sample = sample_few
    rank_failure = RankFailure()
    if enough == "told" and rank == 0:
        rank_failure._watch = lambda: None
    trainer = trainer_of(ranks, strategy, out, max_steps=1, val_check_interval=1, callbacks=[rank_failure])
    try:
        with rank_failure.shared():
            trainer.fit(stage, data_of(target, "joint"), weights_only=True)
    except TrainingError as error:
        print("error:", error, file=sys.stderr, flush=True)
        os._exit(error.status)  # as a process that ends: without waiting for the others
    (out / f"passes-{rank}").write_text(str(len(passes)))
    (out / f"sampled-{rank}").write_text(json.dumps(sampled))
    if rank == 0:
        pair.save_pretrained(out / "pair")


def joint(rank: int, ranks: int, strategy: str, work: Path, out: Path, last: int) -> None:
    """The joint stage with checkpoints, up to step `last` of four; continues from the newest one in `out`."""
    pair = NLA.from_pretrained(work / "pair")
    target = Target.from_pretrained(pair.base_model, 1)
    stage = stage_of("joint", pair, target, steps=4, gather="once")
    trainer = trainer_of(
        ranks, strategy, out, max_steps=last, val_check_interval=4, enable_checkpointing=True, plugins=[StateFile()],
        callbacks=[Checkpointing(str(out / "checkpoints"), every=2, keep=2)],
    )  # fmt: skip
    try:
        point = resume_point(stage, trainer, str(work / "pair"))
    except CheckpointError as error:
        (out / "refused.txt").write_text(str(error))
        return
    trainer.fit(stage, data_of(target, "joint"), ckpt_path=point, weights_only=True)
    plain = whole_pair(pair, lambda: NLA.from_pretrained(work / "pair"))
    if rank == 0:
        plain.save_pretrained(out / "joint")
        (out / "resumed.txt").write_text(str(point))


def adapters(rank: int, ranks: int, strategy: str, work: Path, out: Path) -> None:
    """The verbalizer's warm start with an adapter on the target's own weights."""
    torch.manual_seed(rank)  # a fresh adapter is drawn; rank 0 gives its own to the others
    warm = NLA.from_pretrained(work / "pair")
    target = Target.from_pretrained(warm.base_model, 1)
    lora, marker = {"rank": 4, "alpha": 8.0, "dropout": 0.0}, warm.verbalizer.prompt.marker
    pair = NLA.from_target(warm.base_model, 1, warm.templates, marker, adapter=lora, base=target.model)
    trainer_of(ranks, strategy, out).fit(stage_of("verbalizer", pair, target), data_of(target, "warm_start"))
    if rank == 0:
        pair.save_pretrained(out / "joint")


def evaluation(rank: int, ranks: int, strategy: str, work: Path, out: Path) -> None:
    """What evaluate.py does with a finished pair; notes how many activations this rank has read."""
    evaluation_device({"accelerator": "cpu", "devices": ranks, "num_nodes": 1})
    pair = NLA.from_pretrained(work / "pair")
    target = Target.from_pretrained(pair.base_model, pair.layer)
    read = []
    target.register_forward_hook(lambda _module, arguments, output: read.append(len(output)))
    settings = EvaluationSettings(
        suites=["position_match", "claims", "causal", "next_words"], documents=None, positions_per_document=None,
        batch_size=4, max_new_tokens=24, samples=2, temperature=1.0,
        bootstrap=20, neighbour_documents=0, source_tokens=4, prefix_tokens=[4], judge=None, judge_rows=1,
        report_texts=0,
    )  # fmt: skip
    activations.TOKENS_AT_ONCE = 64  # several buckets, so that there is something to share
    result = run(pair, target, toy_data(size=15), out / "evaluation", settings=settings, command="test")
    (out / f"read-{rank}.json").write_text(json.dumps({"read": sum(read), "rows": len(result.rows)}))


class Given(VerbalizerStage):
    """Its gradients are given, the same on any number of ranks, so that only the optimizer can differ."""

    def update(self, batch: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(self.global_step)
        for parameter in self.nla.verbalizer.parameters():
            gradient = torch.randn(parameter.shape, generator=generator)
            if isinstance(parameter, DTensor):
                gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
            parameter.grad = gradient
        return super().update(batch, loss)


def muon(rank: int, ranks: int, strategy: str, work: Path, out: Path) -> None:
    """Three steps of the default optimizer: Muon on the matrices, AdamW on the rest."""
    pair = NLA.from_pretrained(work / "pair")
    target = Target.from_pretrained(pair.base_model, pair.layer)
    optimizer = functools.partial(MuonAdamW, lr=1e-3, muon_lr=5e-3, weight_decay=0.0, betas=(0.9, 0.98))
    stage = Given(
        pair, target, steps=STEPS, optimizer=optimizer, warmup_steps=0, final_fraction=1.0, clip_norm=1e9,
        micro_batch_size=16, max_new_tokens=8, activation_checkpointing=False, gather="once",
        skipped_in_a_row=5, seed=0,
    )  # fmt: skip
    trainer_of(ranks, strategy, out, limit_val_batches=0).fit(stage, data_of(target, "warm_start"))
    plain = whole_pair(pair, lambda: NLA.from_pretrained(work / "pair"))
    if rank == 0:
        plain.save_pretrained(out / "pair")


def two_steps(*arguments: Any) -> None:
    joint(*arguments, last=2)


def four_steps(*arguments: Any) -> None:
    joint(*arguments, last=4)


def under_slurm(rank: int, ranks: int, strategy: str, work: Path, out: Path) -> None:
    """As srun starts a task: nothing of torchrun's in the environment."""
    port = os.environ["MASTER_PORT"]
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_RUN_ID"):
        del os.environ[name]
    os.environ |= {
        "SLURM_NTASKS": str(ranks), "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0",
        "SLURM_NTASKS_PER_NODE": str(ranks), "SLURM_NNODES": "1", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "nla",
        "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": port,
    }  # fmt: skip
    check_ranks({"devices": ranks, "num_nodes": 1})
    four_steps(rank, ranks, strategy, work, out)
    found = {"rank": torch.distributed.get_rank(), "ranks": torch.distributed.get_world_size()}
    try:
        check_ranks({"devices": 1, "num_nodes": 1})
    except ConfigError as error:
        found["refused"] = str(error)
    (out / f"slurm-{rank}.json").write_text(json.dumps(found))


TASKS = {
    task.__name__: task
    for task in (
        every_stage,
        ridge_and_gate,
        short_of_memory,
        two_steps,
        four_steps,
        under_slurm,
        adapters,
        evaluation,
        muon,
    )
}
