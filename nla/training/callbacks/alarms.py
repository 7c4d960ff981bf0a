"""Alarms of the joint stage: each step's figures against limits that a healthy policy keeps.

A collapse seldom shows in the reward alone: entropy vanishes, explanations reach the cap or repeat themselves, groups
have equal rewards. An alarm names the value, its limit and for how long, what that usually means, and what to try.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer

from nla.errors import ConfigError, TrainingError
from nla.training.callbacks.checkpointing import Checkpointing


class Alarm(NamedTuple):
    """A metric that the joint stage logs at each step, and its meaning beyond the limit."""

    metric: str
    below: bool  # the bad side of the limit
    meaning: str
    remedy: str
    at_once: bool = False  # without patience: it never happens by chance


ALARMS = (
    Alarm(
        "surprisal", True,
        "the policy writes nearly the same text whatever it samples, so groups carry no signal",
        "raise stage.joint.kl.coefficient, lower stage.joint.optimizer.lr",
    ),
    Alarm(
        "well_formed", True,
        "most explanations have no valid pair of tags or were cut off, and earn what an orthogonal vector earns",
        "train the verbalizer's warm start longer, raise sampling.max_new_tokens, lower stage.joint.optimizer.lr",
    ),
    Alarm(
        "at_cap", False,
        "explanations are as long as the cap and many are cut off",
        "raise sampling.max_new_tokens, or raise stage.joint.kl.coefficient if they grow without end",
    ),
    Alarm(
        "equal_groups", False,
        "the samples of most activations earn the same, so these activations teach nothing",
        "raise sampling.group_size, keep sampling.temperature at 1, look at well_formed",
    ),
    Alarm(
        "kl", False,
        "the policy has left its warm start far behind; texts often turn unreadable here while the reward still grows",
        "raise stage.joint.kl.coefficient, lower stage.joint.optimizer.lr",
    ),
    Alarm(
        "repetition", False,
        "explanations go in circles or list the same tags again and again",
        "raise stage.joint.kl.coefficient, lower sampling.max_new_tokens, go back to an earlier checkpoint",
    ),
    Alarm(
        "sampling_gap", False,
        "what was sampled is not what is trained: sampler and trained forward pass differ in weights or arithmetic",
        "set adapter.dropout=0, sampling.dtype=null and sampling.graphs=false, or take sampling=hf, the reference",
        at_once=True,
    ),
)  # fmt: skip


class Alarms(Callback):
    """Warns, or stops the run, when a figure stays beyond its limit.

    A limit of null switches its alarm off. An alarm that has rung is silent until its figure has recovered. Logged
    values are means over all ranks, so that all ranks decide the same.

    Args:
        patience: consecutive steps beyond a limit until an alarm rings (`sampling_gap`: one).
        stop_on: alarms that end the run with TrainingError instead of a warning.
        surprisal: nats per token, at least.
        well_formed: share of the samples, at least.
        at_cap: share of samples as long as `sampling.max_new_tokens`, at most.
        equal_groups: share of groups whose advantages are all 0, at most.
        kl: nats per token, at most.
        repetition: share of runs of four tokens that repeat an earlier one of their sample, at most.
        sampling_gap: mean |log-prob as sampled - teacher forced|, nats, at most.
    """

    def __init__(
        self,
        *,
        patience: int,
        stop_on: Sequence[str],
        surprisal: float | None,
        well_formed: float | None,
        at_cap: float | None,
        equal_groups: float | None,
        kl: float | None,
        repetition: float | None,
        sampling_gap: float | None,
    ) -> None:
        given = (surprisal, well_formed, at_cap, equal_groups, kl, repetition, sampling_gap)
        known = [alarm.metric for alarm in ALARMS]
        self.limits = dict(zip(known, given, strict=True))
        self.patience, self.stop_on = max(1, patience), frozenset(stop_on)
        unknown = sorted(self.stop_on - set(known))
        if unknown:
            raise ConfigError(f"callbacks.alarms.stop_on: no alarm {unknown[0]!r}; there are {', '.join(known)}")
        self._beyond: dict[str, int] = {}  # steps in a row

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        stage, logged = str(getattr(pl_module, "name", "")), trainer.callback_metrics
        wanted = {name: f"{stage}/{name}" for name, limit in self.limits.items() if limit is not None}
        values = {name: float(logged[key]) for name, key in wanted.items() if key in logged}
        for message in self.check(values, stage, trainer.global_step, lambda: way_back(trainer, self.patience)):
            if trainer.is_global_zero:
                warnings.warn(message, stacklevel=2)

    def check(
        self, values: Mapping[str, float], stage: str, step: int, further: Callable[[], str] = lambda: ""
    ) -> list[str]:
        """Messages of the alarms that ring after a step. Raises TrainingError for an alarm in `stop_on`.

        `further` is added to the message of the error: rates, and where to continue from.
        """
        ringing = []
        for alarm in ALARMS:
            limit, value = self.limits[alarm.metric], values.get(alarm.metric)
            if limit is None or value is None:
                continue
            bad = value < limit if alarm.below else value > limit
            self._beyond[alarm.metric] = count = self._beyond.get(alarm.metric, 0) + 1 if bad else 0
            patience = 1 if alarm.at_once else self.patience
            if count == patience:
                side, during = "below" if alarm.below else "above", f" for {patience} steps" if patience > 1 else ""
                message = (
                    f"{stage}/{alarm.metric} is {value:.3g} at step {step}, {side} callbacks.alarms.{alarm.metric}="
                    f"{limit:g}{during}: {alarm.meaning}; {alarm.remedy}"
                )
                if alarm.metric in self.stop_on:
                    raise TrainingError(f"stage {stage} stopped: {message}{further()}")
                ringing.append(message)
        return ringing

    def state_dict(self) -> dict[str, Any]:
        return dict(self._beyond)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._beyond = {name: int(count) for name, count in state_dict.items()}


def way_back(trainer: Trainer, patience: int) -> str:
    """The learning rates of the run, and the newest checkpoint from before the figures went wrong."""
    rates = sorted({float(group["lr"]) for optimizer in trainer.optimizers for group in optimizer.param_groups})
    good = trainer.global_step - patience
    saved: list[Path] = []
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, Checkpointing):
            saved += callback.folder.up_to(good)
    where = (
        f"the last checkpoint from before is {saved[-1]}"
        if saved
        else "no checkpoint is older: start again from the pair that the stage began with"
    )
    return f". Learning rates now: {', '.join(f'{rate:.2g}' for rate in rates)}; {where}"
