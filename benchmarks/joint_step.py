"""A whole joint step: what `nla.training.stages.JointStage` does against the straightforward step of `plain_step.py`.

    python benchmarks/joint_step.py --pair runs/world/nla

World's target, 16 activations of 8 samples, losses and optimizer of conf/stage/joint.yaml. For the same explanations
both steps have the same loss and the same gradients, which is checked first. Learning rates are 0 while timing: the
same work in every repeat, and weights that stay.
"""

import copy
import functools
import itertools
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from limits import bound
from models import world_activations, world_pair
from omegaconf import OmegaConf
from plain_step import Activations, Predictions, Setting, Step, plain, texts_of, total
from timing import Run, alternate, options, pin, record
from torch import Tensor, nn

from nla.config.compose import compose
from nla.core.records import Completions
from nla.models.pair import HALVES, NLA
from nla.models.parameters import trainable
from nla.models.reference import Reference
from nla.models.sampling import SamplingParams
from nla.training.optim import MuonAdamW, parameter_groups

PARTS = ("rollout", "scoring", "update")


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--pair", type=Path, help="saved pair of the world; default: an untrained one, shorter texts")
    arguments = parser.parse_args()
    pin(arguments.core)
    batch, samples, cap = (2, 2, 24) if arguments.quick else (16, 8, 40)
    setting = setting_of(samples, cap)
    nla = world_pair(arguments.pair)
    activation = world_activations(nla, batch)
    other = copy.deepcopy(nla)
    steps = {"ours": (nla, shared(nla)), "other": (other, plain(other))}
    completions = rollout(nla, activation, setting, 0)
    check_same(steps, activation, completions, setting)
    parts: dict[str, list[list[float]]] = {"ours": [], "other": []}
    runs = {}
    for name, (pair, step) in steps.items():
        runs[name] = functools.partial(timed, parts[name], step, pair, optimizer_of(pair), activation, setting)
    comparison = alternate(runs["ours"], runs["other"], arguments.repeats)
    trained = "untrained pair" if arguments.pair is None else "trained pair"
    title = f"joint step, world target, {trained}, {batch} x {samples} samples, up to {cap} tokens"
    against = "`generate`, full softmax, separate reference, one text per forward"
    seconds = {name: dict(zip(PARTS, map(statistics.median, zip(*taken[1:])))) for name, taken in parts.items()}
    lengths = completions.mask.sum(1).float()
    figures = {
        "seconds": seconds,
        "tokens": float(lengths.mean()),
        "well_formed": float(completions.well_formed.float().mean()),
        "separate_scoring": separate_scoring(nla, completions, runs["ours"], arguments.repeats),
    }
    row = comparison.row("joint_step", title, against, "s")
    record("joint_step", arguments, [row, bound(row, runs["ours"])], figures)
    share = figures["separate_scoring"]["share"]
    print(f"a separate scoring forward, without gradients, would take another {share:.1%} of the step")
    return 0


def separate_scoring(nla: NLA, completions: Completions, step: Run, repeats: int) -> dict[str, float]:
    """How much more a step would cost if rewards came from a forward pass of their own, in turn with whole steps."""

    def extra() -> float:
        with torch.no_grad():
            score(nla, completions)
        return 1.0

    comparison = alternate(extra, step, repeats)
    seconds, whole = (statistics.median(way.seconds) for way in (comparison.ours, comparison.other))
    return {"seconds": seconds, "step_seconds": whole, "share": seconds / whole}


def setting_of(samples: int, max_new_tokens: int) -> Setting:
    about = joint_config()
    return Setting(samples, max_new_tokens, kl=about["kl"]["coefficient"], clip_norm=about["clip_norm"])


def joint_config() -> dict[str, Any]:
    """The world's."""
    node: Any = OmegaConf.to_container(compose("train").stage.joint, resolve=True)
    return node


def optimizer_of(nla: NLA) -> MuonAdamW:
    """As the joint stage makes it, except that its rates are then set to 0."""
    about = joint_config()
    defaults = {key: value for key, value in about["optimizer"].items() if not key.startswith("_")}
    groups = parameter_groups({half: getattr(nla, half) for half in HALVES}, about["groups"])
    optimizer = MuonAdamW(groups, **defaults)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    return optimizer


def shared(nla: NLA) -> Step:
    """Ours, with today's verbalizer as its reference."""
    return Step(rollout, score, partial(loss, Reference(nla.verbalizer)))


def rollout(nla: NLA, activation: Activations, setting: Setting, seed: int) -> Completions:
    return nla.verbalizer.sample(activation, SamplingParams.policy(setting.max_new_tokens, setting.samples), seed)


def score(nla: NLA, completions: Completions) -> Predictions:
    """With gradients: the same prediction earns the reward and is trained."""
    return nla.reconstructor(*nla.reconstructor.tokenize(texts_of(completions)))


def loss(
    reference: Reference,
    nla: NLA,
    activation: Activations,
    completions: Completions,
    scored: Predictions,
    setting: Setting,
) -> Tensor:
    log_probs = nla.verbalizer(activation, completions.tokens, completions.mask)
    with reference.active() as frozen:
        expected = frozen(activation, completions.tokens, completions.mask)
    return total(nla, activation, completions, scored, scored, log_probs, expected, setting)


def timed(
    taken: list[list[float]], step: Step, nla: NLA, optimizer: MuonAdamW, activation: Activations, setting: Setting
) -> float:
    """One step; seconds of rollout, scoring and update go to `taken`."""
    marks = [time.perf_counter()]
    completions = step.rollout(nla, activation, setting, len(taken))
    marks.append(time.perf_counter())
    scored = step.score(nla, completions)
    marks.append(time.perf_counter())
    optimizer.zero_grad()
    step.loss(nla, activation, completions, scored, setting).backward()
    for half in HALVES:
        nn.utils.clip_grad_norm_(trainable(getattr(nla, half)), setting.clip_norm)
    optimizer.step()
    marks.append(time.perf_counter())
    taken.append([end - start for start, end in itertools.pairwise(marks)])
    return 1.0


def check_same(
    steps: dict[str, tuple[NLA, Step]], activation: Activations, completions: Completions, setting: Setting
) -> None:
    """Loss and gradients of both steps on the same explanations."""
    rows = []
    for nla, step in steps.values():
        value = step.loss(nla, activation, completions, step.score(nla, completions), setting)
        value.backward()
        rows.append([value.detach(), *(parameter.grad for parameter in trainable(nla))])
        nla.zero_grad()
    for one, other in zip(*rows, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


if __name__ == "__main__":
    sys.exit(main())
