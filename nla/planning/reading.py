"""From a composed config to tasks: the strategy, the prompts' tokens, the sizes of each stage."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nla.config.schema import HardwareSettings, LoraAdapter, TrainSettings
from nla.config.trainer import with_strategy
from nla.errors import ConfigError, NLAError
from nla.models.backbone import load_tokenizer, resolve
from nla.models.prompts import build_verbalizer_prompt, resolve_marker
from nla.planning.facts import Assumptions
from nla.planning.memory import Layout, Strategy
from nla.planning.shapes import Shape, load_config, shape_of
from nla.planning.task import Task

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "nf4": 2}  # of nf4: the type it is unpacked to
NF4 = 0.53  # bytes of a weight stored in 4 bits, with its scales
CHARACTERS_PER_TOKEN, CHAT_TOKENS = 4, 15  # of a template without a tokenizer


def tasks_of(settings: TrainSettings, facts: Assumptions) -> tuple[list[Task], list[str]]:
    """One task per stage that runs, and the assumptions made. Raises ConfigError, ModelError."""
    model = settings.model
    shape = shape_of(load_config(model.id, model.revision, model.shape and model.shape.model_dump()))
    layout, notes = layout_of(settings.hardware, BYTES[model.dtype], settings.adapter.kind)
    if model.dtype == "nf4":
        layout = replace(layout, frozen=NF4)
    prompt, shared, prompt_notes = prompt_tokens(settings, facts)
    notes += prompt_notes
    layer = settings.layer.block(shape.depth)
    numbers = {"shape": shape, "layer": layer, "layout": layout, "prompt": prompt, "shared": shared}
    return [_task(name, settings, facts, numbers) for name in settings.stages], notes


def layout_of(hardware: HardwareSettings, weight: int, adapter: str) -> tuple[Layout, list[str]]:
    """The layout of a hardware config and what it leaves open. Raises ConfigError for an unknown strategy."""
    trainer, notes = hardware.trainer, []
    named = trainer.get("strategy", "auto")
    if not isinstance(named, Mapping) or "_target_" not in named:
        named = with_strategy({"strategy": named}, adapter)["strategy"]
    devices = trainer.get("devices", 1)
    if isinstance(devices, list):
        devices = len(devices)
    if devices in ("auto", -1, "-1"):
        devices = 1
        notes.append("hardware.trainer.devices=auto counts as one; give a number to plan for more")
    try:
        gpus = int(devices) * int(trainer.get("num_nodes", 1))
    except ValueError:
        raise ConfigError(f"hardware.trainer.devices={devices!r}: give a number to plan with") from None
    precision = str(trainer.get("precision", "32-true"))
    compute = 2 if precision.startswith(("bf16", "16")) else weight
    weight = 2 if precision.endswith("true") and compute == 2 else weight
    return (
        Layout(
            gpus=gpus,
            strategy=_strategy(named, gpus),
            weight=weight,
            compute=min(compute, weight),
            checkpointing=hardware.activation_checkpointing,
            fused=trainer.get("accelerator") != "cpu",
        ),
        notes,
    )


def _strategy(given: Any, gpus: int) -> Strategy:
    target = given.get("_target_") if isinstance(given, Mapping) else type(given).__name__
    name = str(given if isinstance(given, str) else target).lower()
    if "modelparallel" in name or "model_parallel" in name or "fsdp" in name:
        return "fsdp"
    if name == "auto" or "ddp" in name or "single" in name:
        return "ddp" if gpus > 1 else "single"
    raise ConfigError(f"hardware.trainer.strategy={given}: known are auto, ddp, ModelParallelStrategy (FSDP2)")


def prompt_tokens(settings: TrainSettings, facts: Assumptions) -> tuple[int, int, list[str]]:
    """Tokens of the verbalizer's prompt, and of it before the marker: by the tokenizer if it is here."""
    model = settings.model
    template = model.templates.verbalizer
    before = template.index("{injection_char}") / len(template)
    if facts.tokens.prompt is not None:
        return facts.tokens.prompt, max(0, round(before * facts.tokens.prompt)), []
    if Path(str(resolve(model.id))).is_dir():
        try:
            tokenizer = load_tokenizer(model.id, model.revision)
            prompt = build_verbalizer_prompt(tokenizer, template, resolve_marker(tokenizer, model.marker))
            return len(prompt.tokens), prompt.position, []
        except NLAError:
            pass  # a folder with a config alone
    length = len(template) // CHARACTERS_PER_TOKEN + CHAT_TOKENS
    note = f"the verbalizer's prompt is assumed to have {length} tokens: no tokenizer here (planning.tokens.prompt)"
    return length, round(before * length), [note]


def _task(name: str, settings: TrainSettings, facts: Assumptions, numbers: dict[str, Any]) -> Task:
    stage, data = settings.stage[name].arguments, settings.stage[name].data
    tokens, joint = facts.tokens, name == "joint"
    sampling = stage.get("sampling") or settings.sampling
    cap = int(sampling["max_new_tokens"])
    response = (tokens.response or cap) if joint else (tokens.warm_start or cap)
    adapter = settings.adapter
    dtype, layout = sampling.get("dtype"), numbers["layout"]
    documents = -(-data.batch_size // data.positions_per_document)
    return Task(
        stage=name,
        trains=("verbalizer", "reconstructor") if joint else (name,),
        steps=int(stage["steps"]),
        rows=data.batch_size,
        group=int(sampling["group_size"]) if joint else 1,
        micro_batch=int(stage.get("micro_batch_size") or settings.hardware.micro_batch_size),
        response=response,
        cap=cap,
        text=response + tokens.suffix,
        documents=documents,
        document=tokens.document or max(1, settings.data.max_tokens // 2),
        reference=joint and float(stage["kl"]["coefficient"]) > 0,
        muon=_muon(stage),
        rank=adapter.rank if isinstance(adapter, LoraAdapter) else None,
        recorded=layout.fused and layout.strategy != "fsdp" and sampling.get("graphs") is not False,
        engine=BYTES[dtype] if dtype else layout.compute,
        **numbers,
    )


def _muon(stage: Mapping[str, Any]) -> tuple[bool, bool]:
    optimizer = stage["optimizer"]
    if not str(optimizer.get("_target_", "")).endswith("MuonAdamW"):
        return False, False
    groups = stage.get("groups") or {}
    rates = [groups.get(half, {}).get("muon_lr", optimizer["muon_lr"]) for half in ("verbalizer", "reconstructor")]
    return rates[0] > 0, rates[1] > 0


def shape_summary(shape: Shape, layer: int) -> dict[str, float]:
    """Parameters by model."""
    lower = shape.truncated(layer)
    return {
        "model": shape.parameters,
        "active": shape.active,
        "reconstructor": lower.parameters + shape.d_model**2,
        "blocks": shape.depth,
        "layer": layer,
        "d_model": shape.d_model,
        "vocab": shape.vocab,
    }
