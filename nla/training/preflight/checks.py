"""Checks of a pair and of the run folder. Each looks at one thing and reports it; none trains anything."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from nla.core.objectives import cosine
from nla.core.records import ActivationBatch, Completions
from nla.errors import NLAError, first_line
from nla.models.pair import NLA
from nla.models.verbalizer import FAR_OFF, Verbalizer
from nla.training.parallel import whole

GB = 1e9
CHANCE = 3.0  # standard errors by which the right pairing must beat the others; in cosine also by at least 1 / sqrt(d)


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check. Only `failed` keeps a run from starting."""

    name: str
    status: Literal["ok", "warning", "failed"]
    message: str


def judged(name: str, good: bool, message: str, remedy: str = "") -> Check:
    """Passed, or failed with the remedy."""
    return Check(name, "ok" if good else "failed", message if good or not remedy else f"{message}; {remedy}")


@torch.no_grad()
def injection(verbalizer: Verbalizer, batch: ActivationBatch) -> Check:
    """Two activations with the same prompt and answer give different log-probs; the injection counter passes both."""
    tokens, mask = verbalizer.respond(["a text"])
    try:  # one at a time: packed into one row they would differ by rounding
        one, other = (verbalizer(row.unsqueeze(0), tokens, mask) for row in _two_apart(batch.activation))
    except NLAError as error:
        return Check("injection", "failed", str(error))
    apart = float((one - other).abs().max())
    return judged(
        "injection",
        apart > 0,
        f"two activations with the same prompt: log-probs differ by up to {apart:.3g} nats",
        "the verbalizer does not read its activation",
    )


def injection_scale(verbalizer: Verbalizer, batch: ActivationBatch) -> Check:
    """The norm of an activation in the prompt against its own norm."""
    norms = batch.activation.float().norm(dim=-1)
    scale, median = verbalizer.injection_scale, float(norms.median())
    if scale is None:
        return Check("injection scale", "ok", f"raw activations, of median norm {median:.3g}")
    message = f"activations of median norm {median:.3g} are injected at norm {scale:.3g}"
    if 1 / FAR_OFF < scale / median < FAR_OFF:
        return Check("injection scale", "ok", message)
    return Check(
        "injection scale", "warning", f"{message}, more than {FAR_OFF:.0f} times off: set model.injection_scale"
    )


def reconstruction(nla: NLA, batch: ActivationBatch) -> Check:
    """A trained reconstructor tells texts apart: its prediction is nearer to the text's own activation than to others.

    A head that is the identity, or random, fails: random directions differ by about 1 / sqrt(d), less on average.
    Rows come from different documents as far as the batch has them.
    """
    name = "reconstructor"
    head = whole(nla.reconstructor.head.weight)
    if bool((head == torch.eye(len(head), device=head.device)).all()):
        return Check(name, "failed", "its head is the identity it starts from: it was never trained; train that stage")
    texts = batch.explanation or [text[-200:] for text in batch.text]
    prediction = nla.reconstruct(texts)
    if not bool(prediction.isfinite().all()):
        return Check(name, "failed", "its predictions are not finite: the pair is damaged; use an earlier one")
    right = cosine(prediction, batch.activation)
    others = torch.stack([cosine(prediction, batch.activation.roll(shift, 0)) for shift in range(1, len(batch))])
    gain = right - others.mean(0)
    errors = float(gain.mean() / (gain.std() / len(gain) ** 0.5).clamp_min(1e-9))
    needed = nla.d_model**-0.5
    return judged(
        name,
        errors > CHANCE and float(gain.mean()) > needed,
        f"cosine {float(right.mean()):.3f} with the right activation, {float(others.mean()):.3f} with others, "
        f"{errors:.1f} standard errors apart ({len(gain)} texts)",
        f"needed are {needed:.3f} and {CHANCE:.0f} standard errors: it reads no more from its texts than chance, its "
        "head is untrained or damaged",
    )


def explanations(completions: Completions, trained: bool) -> Check:
    """The share of sampled explanations that are well-formed, and the first of them."""
    share = float(completions.well_formed.float().mean())
    first = next((text for text in completions.explanation if text is not None), None)
    message = f"{share:.0%} of {len(completions)} well-formed" + (f", such as: {first[:120]}" if first else "")
    if share > 0 or not trained:
        return Check("explanations", "ok", message if trained else f"{message} (untrained)")
    return Check(
        "explanations", "failed", f"{message}: nothing could be rewarded; train the verbalizer's warm start, or raise "
        "sampling.max_new_tokens"
    )  # fmt: skip


@torch.no_grad()
def sampling_gap(verbalizer: Verbalizer, batch: ActivationBatch, completions: Completions, limit: float) -> Check:
    """Log-probs as sampled against teacher forcing, mean over tokens."""
    if completions.log_probs is None:
        return Check("sampling gap", "ok", "this sampler gives no log-probs")
    forced = verbalizer(batch.activation, completions.tokens, completions.mask)
    gap = float((forced - completions.log_probs)[completions.mask].abs().mean())
    return judged(
        "sampling gap",
        gap <= limit,
        f"{gap:.2g} nats between sampled and teacher-forced log-probs, at most {limit:g} is allowed",
        "set adapter.dropout=0, sampling.dtype=null and sampling.graphs=false, or use sampling=hf",
    )


def kl(at_start: float | None, gradient: float | None) -> Check:
    """KL to the warm start before the first update, and the norm of its gradient once the policy has moved."""
    if at_start is None or gradient is None:
        return Check("KL", "ok", "stage.joint.kl.coefficient is 0: no reference")
    message = f"{at_start:g} at step 0, gradient of norm {gradient:.3g} once the policy has moved"
    remedy = "it must be exactly 0 at first, and then pull: set adapter.dropout=0, check stage.joint.kl"
    return judged("KL", at_start == 0 and 0 < gradient < float("inf"), message, remedy)


def run_folder(folder: Path, needed: int) -> list[Check]:
    """Whether it can be written to and has room for `needed` bytes. Nothing is left behind."""
    parent = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    try:
        with tempfile.NamedTemporaryFile(dir=parent) as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError as error:
        return [Check("write access", "failed", f"{parent}: {first_line(error)}; choose run_dir=<another folder>")]
    free = shutil.disk_usage(parent).free
    message = f"{free / GB:.1f} GB free in {parent}, about {needed / GB:.2g} GB needed"
    return [
        Check("write access", "ok", str(parent)),
        judged(
            "disk",
            free > needed,
            message,
            "free some space, lower callbacks.checkpoint.keep, or choose another run_dir",
        ),
    ]


def disk_needed(nla: NLA, stages: int, kept: int) -> int:
    """Bytes of a run: a pair per stage and the final one, and the checkpoints of the largest stage.

    A checkpoint holds the trained weights and two moments of each in fp32.
    """

    def size(module: nn.Module, trained: bool) -> int:
        unique: dict[int, Tensor] = {id(p): p for p in module.parameters() if p.requires_grad or not trained}
        return sum(p.numel() * (4 if trained else p.element_size()) for p in unique.values())

    return size(nla, False) * (stages + 1) + 3 * size(nla, True) * (kept + 1)


def _two_apart(activation: Tensor) -> Tensor:
    """The first activation and the one least like it."""
    similarity = cosine(activation, activation[:1].expand_as(activation))
    return activation[[0, int(similarity.argmin())]]
