"""The training loop of `nla pretrain`: next-token loss, plus the gist loss at one layer."""

import csv
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from nla import files
from nla.core.padding import padded
from nla.core.schedule import learning_rate_share
from nla.data.source import Document
from nla.errors import DataError
from nla.models.backbone import head_logits
from nla.models.prompts import pad_id
from nla.pretraining.gist import GistLoss
from nla.pretraining.lessons import Lessons
from nla.pretraining.tokenizer import END


@dataclass(frozen=True, slots=True)
class Architecture:
    """Size of the target (Qwen3 classes: RMSNorm, QK-norm, grouped-query attention, tied embeddings)."""

    d_model: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    kv_heads: PositiveInt
    head_dim: PositiveInt
    d_ff: PositiveInt
    vocab: PositiveInt
    context: PositiveInt
    initializer_range: PositiveFloat

    def build(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        config = Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=self.d_model,
            intermediate_size=self.d_ff,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=self.context,
            initializer_range=self.initializer_range,
            tie_word_embeddings=True,
            pad_token_id=pad_id(tokenizer),
            eos_token_id=tokenizer.convert_tokens_to_ids(END),
            bos_token_id=None,
        )
        return Qwen3ForCausalLM(config)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How it is trained. `gist_weight` 0 gives the plain language model that the shipped one is compared with."""

    steps: PositiveInt
    batch_size: PositiveInt
    """lessons per step"""
    muon_lr: NonNegativeFloat
    """matrices of the blocks (``torch.optim.Muon``)"""
    adamw_lr: NonNegativeFloat
    """embeddings and norms"""
    weight_decay: NonNegativeFloat
    warmup_steps: NonNegativeInt
    final_fraction: NonNegativeFloat
    """of both rates at the last step, reached by a cosine"""
    gist_weight: NonNegativeFloat
    gist_layer: NonNegativeInt
    gist_horizon: PositiveInt
    gist_rare: NonNegativeFloat
    gist_share: NonNegativeFloat
    validate_every: PositiveInt
    bf16: bool
    """autocast of the forward pass (slower than fp32 on CPUs without AMX)"""
    compile: bool
    """fuse each block with ``torch.compile`` (needs a C++ compiler)"""
    seed: NonNegativeInt


def batches(
    lessons: Lessons, documents: Sequence[Document], size: int, first_step: int, chunk: int = 16
) -> Iterator[tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"]]]:
    """Endless right-padded batches from step `first_step` on; `chunk` steps are sorted by length together."""
    pad = pad_id(lessons.tokenizer)
    start = first_step // chunk
    while True:
        number = start * chunk * size
        rows = [documents[index % len(documents)] for index in range(number, number + chunk * size)]
        tokens = sorted(lessons.tokens(rows, number), key=len)
        order = torch.randperm(chunk, generator=torch.Generator().manual_seed(start)).tolist()
        skip = max(0, first_step - start * chunk)
        for index in order[skip:]:
            yield padded(tokens[index * size : (index + 1) * size], pad)
        start += 1


def next_token_loss(
    model: PreTrainedModel, hidden: Float[Tensor, "batch time d_model"], tokens: Tensor, mask: Tensor
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats over the real tokens after the first."""
    keep = mask[:, 1:]
    return F.cross_entropy(head_logits(model, hidden[:, :-1][keep]), tokens[:, 1:][keep])


def optimizers(model: nn.Module, gist: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for everything else."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    inside = {id(p) for p in matrices}
    others = [p for p in (*model.parameters(), *gist.parameters()) if id(p) not in inside]
    muon = torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay)
    return [muon, torch.optim.AdamW(others, lr=recipe.adamw_lr, betas=(0.9, 0.98), weight_decay=recipe.weight_decay)]


def frequencies(tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document]) -> Float[Tensor, " vocab"]:
    """Relative frequency of each token in the documents."""
    ids = tokenizer([document.text for document in documents], add_special_tokens=False)["input_ids"]
    counts = torch.bincount(torch.tensor([token for row in ids for token in row]), minlength=len(tokenizer))
    return counts.float() / counts.sum()


def pretrain(
    lessons: Lessons,
    architecture: Architecture,
    recipe: Recipe,
    folder: Path,
    log: Callable[[str], None] = print,
) -> PreTrainedModel:
    """Train a target on `lessons` and write it to `folder` as a plain Hugging Face model.

    The same call continues after an interruption (`resume.pt` in the folder). `curve.csv` and
    `pretraining.json` record loss, seconds and settings.
    """
    documents = lessons.source.documents("pretrain")
    if not documents:
        raise DataError("split 'pretrain' has no documents: raise data.sizes.pretrain or point data.path at text")
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    model = architecture.build(lessons.tokenizer)
    gist = GistLoss(
        architecture.d_model,
        frequencies(lessons.tokenizer, documents[:5000]),
        horizon=recipe.gist_horizon,
        rare=recipe.gist_rare,
        share=recipe.gist_share,
    )
    opts = optimizers(model, gist, recipe)
    if recipe.compile:
        for block in model.model.layers:
            block.compile(dynamic=True)
    curve, state = folder / "curve.csv", folder / "resume.pt"
    step, seconds = _restore(state, model, gist, opts) if state.exists() else (0, 0.0)
    _trim(curve, step)
    validation = _validation(lessons)
    begin, running = time.perf_counter() - seconds, []
    columns = (TextColumn("pretrain"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[loss]}")) as progress:
        task = progress.add_task("pretrain", total=recipe.steps, completed=step, loss="")
        for tokens, mask in batches(lessons, documents, recipe.batch_size, step):
            if step >= recipe.steps:
                break
            running.append(_step(model, gist, opts, tokens, mask, step, recipe))
            step += 1
            progress.update(task, advance=1, loss=f"next token {running[-1][0]:.3f} gist {running[-1][1]:.3f}")
            if step % recipe.validate_every == 0 or step == recipe.steps:
                row = _record(curve, step, time.perf_counter() - begin, running, evaluate(model, validation, recipe))
                log("  ".join(f"{key} {value:.4g}" for key, value in row.items()))
                running = []
                _save(state, step, row["seconds"], model, gist, opts)
    model.save_pretrained(folder)
    lessons.tokenizer.save_pretrained(folder)
    record = {"architecture": asdict(architecture), "recipe": asdict(recipe), "seconds": time.perf_counter() - begin}
    files.write_text(folder / "pretraining.json", json.dumps(record, indent=2) + "\n")
    state.unlink(missing_ok=True)
    return model


def _step(
    model: PreTrainedModel,
    gist: GistLoss,
    opts: list[torch.optim.Optimizer],
    tokens: Tensor,
    mask: Tensor,
    step: int,
    recipe: Recipe,
) -> tuple[float, float]:
    share = learning_rate_share(
        step, steps=recipe.steps, warmup_steps=recipe.warmup_steps, final_fraction=recipe.final_fraction
    )
    for opt, full in zip(opts, (recipe.muon_lr, recipe.adamw_lr), strict=True):
        for group in opt.param_groups:
            group["lr"] = full * share
    with torch.autocast("cpu", torch.bfloat16) if recipe.bf16 else nullcontext():
        out = model.model(input_ids=tokens, output_hidden_states=recipe.gist_weight > 0, use_cache=False)
        loss = next_token_loss(model, out.last_hidden_state, tokens, mask)
        extra = torch.zeros(())
        if recipe.gist_weight > 0:
            extra = gist(out.hidden_states[recipe.gist_layer + 1], tokens, mask)
    (loss + recipe.gist_weight * extra).backward()
    torch.nn.utils.clip_grad_norm_([p for opt in opts for g in opt.param_groups for p in g["params"]], 1.0)
    for opt in opts:
        opt.step()
        opt.zero_grad(set_to_none=True)
    return loss.item(), extra.item()


def _validation(lessons: Lessons) -> tuple[Tensor, Tensor]:
    texts = [document.text for document in lessons.source.documents("validation")[:128]]
    rows = lessons.tokenizer(texts, add_special_tokens=False)["input_ids"]
    return padded(rows, pad_id(lessons.tokenizer))


@torch.no_grad()
def evaluate(model: PreTrainedModel, validation: tuple[Tensor, Tensor], recipe: Recipe) -> float:
    """Next-token loss in nats on whole held-out documents."""
    tokens, mask = validation
    with torch.autocast("cpu", torch.bfloat16) if recipe.bf16 else nullcontext():
        hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
        return next_token_loss(model, hidden, tokens, mask).item()


def _record(path: Path, step: int, seconds: float, running: list, validation: float) -> dict[str, float]:
    lm, gist = (sum(column) / len(column) for column in zip(*running, strict=True))
    row = {"step": step, "seconds": round(seconds, 1), "loss": lm, "gist_loss": gist, "validation_loss": validation}
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)
    return row


def _trim(path: Path, step: int) -> None:
    """Drop what an interrupted run recorded after its last checkpoint, or an earlier run altogether."""
    if not path.exists():
        return
    header, *rows = path.read_bytes().decode().splitlines(keepends=True) or [""]
    kept = [row for row in rows if row.split(",")[0].isdigit() and int(row.split(",")[0]) <= step]
    if kept:
        files.write_text(path, "".join([header, *kept]))
    else:
        path.unlink()


def _save(path: Path, step: int, seconds: float, model: nn.Module, gist: nn.Module, opts: list) -> None:
    state = {"step": step, "seconds": seconds, "model": model.state_dict(), "gist": gist.state_dict()}
    state |= {"optimizers": [opt.state_dict() for opt in opts], "rng": torch.get_rng_state()}
    with files.new_file(path) as scratch:
        torch.save(state, scratch)


def _restore(path: Path, model: nn.Module, gist: nn.Module, opts: list) -> tuple[int, float]:
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    gist.load_state_dict(state["gist"])
    for opt, saved in zip(opts, state["optimizers"], strict=True):
        opt.load_state_dict(saved)
    torch.set_rng_state(state["rng"])
    return state["step"], state["seconds"]
