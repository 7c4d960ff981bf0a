"""One step of a stage in a real Trainer with the run's own hardware config, and its figures."""

import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.tensor import DTensor

from nla.core.objectives import kl_to_reference
from nla.data.datamodule import NLADataModule
from nla.errors import NLAError
from nla.models.parameters import trainable
from nla.models.sampling import SamplingParams
from nla.training.parallel import gathered, whole
from nla.training.preflight.checks import GB, Check, kl
from nla.training.stages import JointStage
from nla.training.stages.base import Stage

ROWS_ON_CPU = 8  # of a micro-batch
NUDGE = 0.02  # share of a weight's standard deviation by which the policy is moved off the reference


@dataclass
class Trial(Callback):
    """Records the figures of the first step; the joint stage takes a second, whose samples are as long as the cap.

    The second step shows the memory needed: the texts of an untrained policy may be short.
    """

    look: Callable[[Stage], None] | None = None  # before the first step, with modules as the strategy has placed them
    figures: dict[str, float] = field(default_factory=dict)
    kl_gradient: float | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0 and self.look is not None and isinstance(pl_module, Stage):
            with trainer.precision_plugin.forward_context():
                self.look(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx > 0 or not isinstance(pl_module, Stage):
            return
        names = {key: key.removeprefix(f"{pl_module.name}/") for key in trainer.callback_metrics}
        self.figures = {name: float(trainer.callback_metrics[key]) for key, name in names.items()}
        if isinstance(pl_module, JointStage):
            if "kl" in self.figures:
                with trainer.precision_plugin.forward_context():
                    self.kl_gradient = kl_gradient(pl_module, next(batch.split(2)).activation)
            pl_module.nla.verbalizer.stop_ids = frozenset()


def kl_gradient(stage: JointStage, activation: torch.Tensor) -> float:
    """Norm of the KL's gradient in the verbalizer, whose weights are moved first and not restored."""
    verbalizer = stage.nla.verbalizer
    weights = trainable(verbalizer)
    with gathered(verbalizer, stage.gather):
        completions = verbalizer.sample(activation, SamplingParams.policy(stage.sampling.max_new_tokens), stage.seed)
    with torch.no_grad():
        for weight in weights:
            share = weight.to_local() if isinstance(weight, DTensor) else weight
            if share.numel():  # a rank may have no share of it
                share.add_(torch.randn_like(share) * (NUDGE * share.float().std(correction=0).clamp_min(1e-3)))
    assert stage.reference is not None
    with stage.reference.active() as reference:
        expected = reference(activation, completions.tokens, completions.mask)
    log_probs = verbalizer(activation, completions.tokens, completions.mask)
    kl = kl_to_reference(log_probs, expected, completions.mask, "k3", stage.kl.clamp)
    stage.zero_grad()
    kl.backward()
    norm = whole(torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None]))
    stage.zero_grad()
    return float(norm)


def trial(
    stage: Stage,
    data: NLADataModule,
    hardware: Mapping[str, Any],
    expected: tuple[str, ...],
    report: Callable[[Check], None],
    look: Callable[[Stage], None] | None = None,
) -> None:
    """A step of one micro-batch per rank; the stage's weights are useless afterwards. `look` runs before the step."""
    name, configured = f"step of {stage.name}", stage.micro_batch_size
    watch, started = Trial(look), time.perf_counter()
    joint = isinstance(stage, JointStage)
    stage.skipped_steps.allowed = 1
    if isinstance(stage, JointStage):
        stage.gate_rows = 0  # an untrained pair would not pass
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        for message in expected:
            warnings.filterwarnings("ignore", message)
        warnings.filterwarnings("ignore", ".*out of memory with micro-batches.*")  # reported in the table
        trainer = Trainer(
            default_root_dir=scratch, max_steps=2 if joint else 1, max_epochs=-1, limit_val_batches=0, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            num_sanity_val_steps=0, use_distributed_sampler=False, callbacks=[watch], **hardware,
        )  # fmt: skip
        try:
            data.batch_size = one_micro_batch(stage, data, trainer.world_size)
            trainer.fit(stage, data)
        except NLAError as error:
            report(Check(name, "failed", str(error)))
            return
    report(_step(name, watch.figures, configured, stage.micro_batch_size, time.perf_counter() - started))
    if joint:
        report(kl(watch.figures.get("kl"), watch.kl_gradient))


def one_micro_batch(stage: Stage, data: NLADataModule, ranks: int) -> int:
    """Number of positions that fills one micro-batch on each rank, at most the run's own batch.

    On a CPU a few rows: memory for whole micro-batches is not what runs short there, and they take minutes.
    """
    unit = data.unit * ranks
    group = stage.sampling.group_size if isinstance(stage, JointStage) else 1
    size = stage.micro_batch_size if torch.cuda.is_available() else min(stage.micro_batch_size, ROWS_ON_CPU)
    rows = max(1, size // group) * ranks
    return min(data.batch_size, -(-rows // unit) * unit)


def _step(name: str, figures: Mapping[str, float], configured: int, fitted: int, seconds: float) -> Check:
    norms = {key.removeprefix("gradient_norm_"): value for key, value in figures.items() if "gradient_norm" in key}
    gradients = ", ".join(f"{half} {norm:.3g}" for half, norm in norms.items())
    message = f"gradient norm: {gradients}; micro-batch {fitted}; peak memory {peak_memory()}; {seconds:.1f} s"
    if fitted < configured:
        return Check(name, "warning", f"{message}; {configured} did not fit: hardware.micro_batch_size={fitted} does")
    if not any(norms.values()):
        return Check(name, "warning", f"{message}; no gradient at all: every sample has the same reward")
    return Check(name, "ok", message)


def peak_memory() -> str:
    """Peak memory of this process so far: allocated by torch on a GPU, else resident."""
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        return f"{torch.cuda.max_memory_allocated() / GB:.2f} of {total / GB:.0f} GB"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB:.2f} GB"  # Linux counts in KiB
