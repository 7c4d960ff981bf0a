"""The planner against torch (FlopCounterMode, MemTracker), real classes, and published points."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import MARKER, TEMPLATES, VOCAB, make_config, make_tokenizer, sampling_params
from support.shapes import GEMMA_27B, QWEN
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config

from nla.commands.cli import main
from nla.commands.plan import plan_of
from nla.errors import ConfigError, ModelError
from nla.models.backbone import body, truncated
from nla.models.lora import add_lora
from nla.models.pair import NLA
from nla.models.target import Target
from nla.planning import flops, memory, work
from nla.planning.facts import Assumptions
from nla.planning.memory import Layout, count
from nla.planning.shapes import load_config, shape_of
from nla.training.optim import MuonAdamW, parameter_groups

WIDTH, RANK = 128, 4
# sizes as in their config.json, and the parameters that their cards or files state
PUBLISHED = {
    "qwen2": (QWEN, 7_615_616_512),
    "qwen3": (
        "{model_type: qwen3, vocab_size: 151936, hidden_size: 4096, intermediate_size: 12288, num_hidden_layers: 36, "
        "num_attention_heads: 32, num_key_value_heads: 8, head_dim: 128, tie_word_embeddings: false}",
        8_190_735_360,
    ),
    "llama": (
        "{model_type: llama, vocab_size: 128256, hidden_size: 8192, intermediate_size: 28672, num_hidden_layers: 80, "
        "num_attention_heads: 64, num_key_value_heads: 8, tie_word_embeddings: false}",
        70_553_706_496,
    ),
    "mistral": (
        "{model_type: mistral, vocab_size: 32000, hidden_size: 4096, intermediate_size: 14336, num_hidden_layers: 32, "
        "num_attention_heads: 32, num_key_value_heads: 8, tie_word_embeddings: false}",
        7_241_732_096,
    ),
    "gemma2": (
        "{model_type: gemma2, vocab_size: 256000, hidden_size: 2304, intermediate_size: 9216, num_hidden_layers: 26, "
        "num_attention_heads: 8, num_key_value_heads: 4, head_dim: 256}",
        2_614_341_888,
    ),
    "gemma3": (
        "{model_type: gemma3_text, vocab_size: 262144, hidden_size: 1152, intermediate_size: 6912, "
        "num_hidden_layers: 26, num_attention_heads: 4, num_key_value_heads: 1, head_dim: 256}",
        999_885_952,
    ),
    "gpt2": ("{model_type: gpt2}", 124_439_808),
    "mixtral": (
        "{model_type: mixtral, vocab_size: 32000, hidden_size: 4096, intermediate_size: 14336, num_hidden_layers: 32, "
        "num_attention_heads: 32, num_key_value_heads: 8, num_local_experts: 8, num_experts_per_tok: 2}",
        46_702_792_704,
    ),
}


def sizes(text: str) -> dict[str, Any]:
    import yaml

    return yaml.safe_load(text)


def config_of(family: str) -> Any:
    """Wide enough that constant terms do not count."""
    if family == "gpt2":
        return GPT2Config(
            vocab_size=VOCAB, n_embd=WIDTH, n_layer=4, n_head=4, n_positions=256,
            bos_token_id=2, eos_token_id=1, pad_token_id=0,
        )  # fmt: skip
    if family == "mixtral":
        tiny = {"vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 4}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
        return load_config("", shape={"model_type": "mixtral", **tiny, **heads})
    config = make_config(family)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.head_dim = WIDTH, 320, 4, 32
    if getattr(config, "layer_types", None):
        config.layer_types = (list(config.layer_types) * 2)[:4]
    return config


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root, made = tmp_path_factory.mktemp("planned"), {}
    for family in ("qwen2", "qwen3", "mistral", "gemma2", "gemma3", "gpt2"):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config_of(family)).save_pretrained(root / family)
        make_tokenizer(bos=family.startswith("gemma")).save_pretrained(root / family)
        made[family] = str(root / family)
    return made


def pair(folder: str, adapter: bool = False) -> NLA:
    lora = {"rank": RANK, "alpha": 8.0} if adapter else None
    nla = NLA.from_target(folder, 1, TEMPLATES, MARKER, adapter=lora)
    if not adapter:
        nla.requires_grad_(True)
    return nla


# parameters


@pytest.mark.parametrize("family", PUBLISHED)
def test_parameters_of_real_models_are_the_published_ones(family: str) -> None:
    text, parameters = PUBLISHED[family]
    assert shape_of(load_config("", shape=sizes(text))).parameters == parameters


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "mistral", "gemma2", "gemma3", "gpt2", "mixtral"])
def test_parts_equal_those_of_the_real_classes(family: str) -> None:
    config = config_of(family)
    shape = shape_of(config)
    model = AutoModelForCausalLM.from_config(config)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    decoder = truncated(body(model), 1)
    assert shape.truncated(1).parameters == sum(p.numel() for p in decoder.parameters())
    adapted = add_lora(model, RANK, 8.0)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert count(shape.adapter_tensors(RANK)) == trained


def test_a_token_uses_only_the_experts_that_it_is_routed_to() -> None:
    shape = shape_of(load_config("", shape=sizes(PUBLISHED["mixtral"][0])))
    assert shape.active == pytest.approx(12.75e9, rel=0.01)  # "13 B active" (Mixtral's paper; tables not counted)


# FLOPs


def counted(run: Any) -> float:
    """The counter knows no fused attention on a CPU, hence the plain one."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


def plain_shape(family: str, layer: int | None = None) -> Any:
    shape = shape_of(config_of(family))
    shape = replace(shape, blocks=tuple(replace(block, eager=True) for block in shape.blocks))
    return shape if layer is None else shape.truncated(layer)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma2", "gemma3", "gpt2"])
@pytest.mark.parametrize(("activations", "group"), [(6, 1), (2, 4)])
def test_flops_of_the_verbalizer(folders: dict[str, str], family: str, activations: int, group: int) -> None:
    verbalizer = pair(folders[family]).verbalizer
    shape = plain_shape(family)
    h, tokens = torch.randn(activations, WIDTH), torch.randint(5, 300, (activations * group, 20))
    prompt = verbalizer.prompt
    done = work.teacher_forced(activations, group, len(prompt.tokens), 20, WIDTH, prompt.position)
    found: list[torch.Tensor] = []
    forward = counted(lambda: found.append(verbalizer(h, tokens, torch.ones_like(tokens, dtype=torch.bool))))
    assert flops.forward(shape, done) == pytest.approx(forward, rel=0.05)
    assert flops.backward(shape, done) == pytest.approx(counted(lambda: found[0].sum().backward()), rel=0.05)


@pytest.mark.parametrize("adapter", [False, True])
def test_flops_of_reading_and_reconstruction(folders: dict[str, str], adapter: bool) -> None:
    nla, shape = pair(folders["qwen3"], adapter), plain_shape("qwen3", 1)
    rank = RANK if adapter else None
    tokens = torch.randint(5, 300, (6, 30))
    mask, done, found = torch.ones_like(tokens, dtype=torch.bool), work.rows_of(6, 30), []
    head = 2 * WIDTH**2 * 6
    forward = counted(lambda: found.append(nla.reconstructor(tokens, mask)))
    assert flops.forward(shape, done, rank) + head == pytest.approx(forward, rel=0.05)
    backward = counted(lambda: found[0].sum().backward())
    assert flops.backward(shape, done, rank) + 2 * head == pytest.approx(backward, rel=0.05)
    target = Target.from_pretrained(folders["qwen3"], 1)
    where = (torch.arange(6), torch.full((6,), 29))
    assert flops.forward(shape, done) == pytest.approx(counted(lambda: target(tokens, mask, *where)), rel=0.05)


def test_flops_of_sampling(folders: dict[str, str]) -> None:
    verbalizer, shape = pair(folders["qwen3"]).verbalizer, plain_shape("qwen3")
    verbalizer.stop_ids = frozenset()  # every sample runs to the cap
    activation = torch.randn(2, WIDTH)
    measured = counted(lambda: verbalizer.sample(activation, sampling_params(4, max_new_tokens=12)))
    prompt, shared = len(verbalizer.prompt.tokens), verbalizer.prompt.position
    planned = flops.forward(shape, work.prefill(2, prompt, shared)) + flops.forward(shape, work.decode(8, prompt, 12))
    assert planned == pytest.approx(measured, rel=0.05)


# memory


def peak(run: Any, *modules: torch.nn.Module) -> float:
    """Most bytes of live storages on the CPU, by torch's MemTracker, the modules' own included."""
    tracker = MemTracker()
    tracker.track_external(*modules)
    with tracker:
        run()
    (found,) = tracker.get_tracker_snapshot("peak").values()
    return found["Total"]


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "mistral", "gemma2", "gemma3", "gpt2"])
@pytest.mark.parametrize("mixed", [False, True])
def test_memory_of_an_update(folders: dict[str, str], family: str, mixed: bool) -> None:
    shape, layout = shape_of(config_of(family)), Layout(compute=2 if mixed else 4)
    for activations, group in ((8, 1), (4, 4)):
        verbalizer = pair(folders[family]).verbalizer
        h, tokens = torch.randn(activations, WIDTH), torch.randint(5, 300, (activations * group, 24))
        prompt = verbalizer.prompt
        done = work.teacher_forced(activations, group, len(prompt.tokens), 24, WIDTH, prompt.position)

        def run(v: Any = verbalizer, h: Any = h, tokens: Any = tokens) -> None:
            autocast = torch.autocast("cpu", torch.bfloat16) if mixed else contextlib.nullcontext()
            with autocast:
                v(h, tokens, torch.ones_like(tokens, dtype=torch.bool)).sum().backward()

        measured = peak(run, verbalizer) - 4 * shape.parameters
        assert memory.activations(shape, layout, done) == pytest.approx(measured, rel=0.1)


def test_memory_of_the_reconstructor(folders: dict[str, str]) -> None:
    shape, half = shape_of(config_of("qwen3")).truncated(1), pair(folders["qwen3"]).reconstructor
    tokens = torch.randint(5, 300, (16, 40))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    measured = peak(lambda: half(tokens, mask).sum().backward(), half) - 4 * sum(p.numel() for p in half.parameters())
    planned = memory.activations(shape, Layout(compute=4), work.rows_of(16, 40), head=False)
    assert planned == pytest.approx(measured, rel=0.1)


def test_memory_that_adapters_keep(folders: dict[str, str]) -> None:
    """Bytes that autograd saves, weights left out: MemTracker takes no frozen modules."""
    shape, half = shape_of(config_of("qwen3")).truncated(1), pair(folders["qwen3"], adapter=True).reconstructor
    tokens, saved = torch.randint(5, 300, (16, 40)), {}
    weights = {p.untyped_storage().data_ptr() for p in half.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        half(tokens, torch.ones_like(tokens, dtype=torch.bool))
    done = work.rows_of(16, 40)
    planned = sum(memory.saved_per_token(b, Layout(compute=4), done, adapter=True) for b in shape.blocks) * done.tokens
    assert planned == pytest.approx(sum(size for size, _ in saved.values()), rel=0.1)


def test_memory_of_weights_gradients_and_states(folders: dict[str, str]) -> None:
    nla = pair(folders["qwen3"])
    task = plan_task(f"model.path={folders['qwen3']}", "layer.index=1")
    own = [list(half.parameters()) for half in (nla.verbalizer, nla.reconstructor)]
    assert task.phases()["step"].gradients == 4 * sum(p.numel() for half in own for p in half)
    rates = {"verbalizer": {"muon_lr": 0.0}, "reconstructor": {"muon_lr": 0.01}}
    groups = parameter_groups({"verbalizer": nla.verbalizer, "reconstructor": nla.reconstructor}, rates)
    optimizer = MuonAdamW(groups, lr=1e-3, muon_lr=0.0, weight_decay=0.0, betas=(0.9, 0.98))
    for half in own:
        for parameter in half:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    states = sum(t.numel() * 4 for state in optimizer.state.values() for t in state.values() if t.numel() > 1)
    assert task.phases()["step"].optimizer == pytest.approx(states, rel=0.01)
    models = [Target.from_pretrained(folders["qwen3"], 1), nla.verbalizer, nla.verbalizer, nla.reconstructor]
    assert task.weight_bytes() == 4 * sum(p.numel() for model in models for p in model.parameters())


def test_memory_of_the_cache(folders: dict[str, str]) -> None:
    from nla.models.sampling.attention import StaticCache, shared_attention
    from nla.models.sampling.engine import prefill

    verbalizer, shape = pair(folders["gemma3"]).verbalizer, shape_of(config_of("gemma3"))
    prompt, shared = len(verbalizer.prompt.tokens), verbalizer.prompt.position
    decoder = body(verbalizer.model)
    with torch.no_grad(), shared_attention(decoder):
        _, prefixes = prefill(decoder, verbalizer.prompt_embeddings(torch.randn(3, WIDTH)), 2, shared)
    kept = sum(t.numel() * 4 for prefix in prefixes for t in (*prefix.keys, *prefix.values))
    assert isinstance(StaticCache(1, 1), StaticCache)
    assert memory.cache(shape, Layout(compute=4), 6, 3, prompt, shared, 0) == kept


def test_sharding_and_adapters_change_what_lies_on_a_gpu() -> None:
    spread = [
        "hardware=h100_x8",
        "model=local",
        "model.path=null",
        "model.id=q",
        f"model.shape={QWEN}",
        "layer.index=20",
    ]
    tasks = {name: plan_task(*spread, *more) for name, more in {
        "fsdp": [], "ddp": ["hardware.trainer.strategy=ddp"], "lora": ["adapter=lora"],
    }.items()}  # fmt: skip
    assert tasks["fsdp"].weight_bytes() == pytest.approx(tasks["ddp"].weight_bytes() / 8)
    lora, base = tasks["lora"].weight_bytes(), 4 * tasks["lora"].shape.parameters
    assert base < lora < 1.1 * base  # target, both halves and the reference share one copy
    assert tasks["fsdp"].phases("once")["sample"].total > tasks["fsdp"].phases("blocks")["sample"].total
    kept = tasks["ddp"].with_layout(checkpointing=False).phases()["update"].activations
    assert tasks["ddp"].phases()["update"].activations < 0.8 * kept


def plan_task(*overrides: str) -> Any:
    """The joint stage of a config."""
    from nla.config.check import parse, plain_config
    from nla.config.compose import compose
    from nla.config.schema import TrainSettings
    from nla.planning.reading import tasks_of

    given = [] if any("model=" in override for override in overrides) else ["model=pretrained"]
    plain = plain_config(compose("train", ["+planning=h100", *given, *overrides]))
    facts = Assumptions.model_validate(plain.pop("planning"))
    return tasks_of(parse(TrainSettings, plain), facts)[0][-1]


# published points (docs/records/planning.md explains each)

QWEN_RUN = ["model=local", "model.path=null", "model.id=q", f"model.shape={QWEN}", "layer.index=20"]
WARM = [*QWEN_RUN, "hardware=h100_x8", "hardware.trainer.devices=2", "sampling.max_new_tokens=150",
        "planning.tokens.prompt=100", "stage.verbalizer.data.batch_size=256",
        "stage.reconstructor.data.batch_size=256"]  # fmt: skip
JOINT = [*QWEN_RUN, "hardware=h100_x8", "sampling.max_new_tokens=150", "sampling.group_size=1",
         "planning.tokens.prompt=100", "stage.joint.data.batch_size=512"]  # fmt: skip
BIG = ["model=local", "model.path=null", "model.id=g", f"model.shape={GEMMA_27B}", "layer.index=41",
       "hardware=h100_x16", "sampling.max_new_tokens=150", "sampling.group_size=8", "planning.tokens.prompt=100",
       "stage.joint.data.batch_size=128", "stage.joint.steps=4200", "stage.verbalizer.data.batch_size=256",
       "stage.reconstructor.data.batch_size=256", "stage.verbalizer.steps=1000",
       "stage.reconstructor.steps=1000"]  # fmt: skip


def stages(overrides: list[str]) -> dict[str, Any]:
    return {stage["stage"]: stage for stage in plan_of(overrides)["stages"]}


def test_published_warm_start_steps() -> None:
    found = stages(WARM)
    assert 1 / 1.5 < found["verbalizer"]["step_seconds"] / 4.97 < 1.5
    assert 1 / 1.5 < found["reconstructor"]["step_seconds"] / 3.0 < 1.5


def test_published_joint_step_outside_the_rollouts() -> None:
    """A tenth of 47 s, were 8 of the 16 GPUs serving rollouts; each sample with a prompt of its own (group 1)."""
    seconds = stages(JOINT)["joint"]["seconds"]
    assert 1 / 1.5 < (seconds["update"] + seconds["step"]) / (0.1 * 47) < 1.5


def test_published_27b_run() -> None:
    """1.5 days on 16 H100, with as many joint steps as the 7B run; here sampling needs an H200's memory for it."""
    assert plan_of(BIG)["gather"] == "tensor parallel"
    plan = plan_of([*BIG, "planning=h200"])
    assert plan["gather"] == "once" and plan["fits"]
    assert 1 / 1.5 < plan["hours"] / 24 / 1.5 < 1.5


# the program


def test_the_command_prints_a_plan_and_its_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "experiment=world_smoke"]) == 0
    printed = capsys.readouterr().out
    for word in ("weights", "gradients", "optimizer", "activations", "cache", "buffers", "It fits", "hours", "texts"):
        assert word in printed
    assert main(["plan", "--json", "experiment=world_smoke"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] is True
    assert [stage["stage"] for stage in plan["stages"]] == ["verbalizer", "reconstructor", "joint"]


def test_the_demo_is_planned_as_it_was_measured() -> None:
    """docs/records/planning.md: 120, 28, 152 s on two threads, validation included, with texts of 14 and 32 tokens."""
    run = ["experiment=world", "hardware=cpu", "planning.tokens.warm_start=14", "planning.tokens.response=32"]
    one, two = (plan_of([*run, f"planning.tflops.float32={rate}"]) for rate in (0.128, 0.256))
    for stage, (name, measured) in enumerate({"verbalizer": 120, "reconstructor": 28, "joint": 152}.items()):
        best, worst = two["stages"][stage]["hours"] * 3600, one["stages"][stage]["hours"] * 3600
        assert two["stages"][stage]["stage"] == name and best < measured < worst
        assert measured / best < 1.7


def test_what_does_not_fit_is_said_with_changes_that_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *QWEN_RUN, "hardware=gpu"]) == 1
    assert "It does not fit" in capsys.readouterr().out
    plan = plan_of([*QWEN_RUN, "hardware=gpu"])
    assert any("fsdp2 on 8 GPUs" in change for change in plan["changes"])
    lora = next(change for change in plan["changes"] if "adapter=lora" in change)
    changed = plan_of([*QWEN_RUN, "hardware=gpu", *(word.strip(",:") for word in lora.split() if "=" in word)])
    assert changed["fits"]


def test_prices_and_devices_are_overrides() -> None:
    once = plan_of([*QWEN_RUN, "hardware=h100_x8", "planning.price_per_gpu_hour=2"])
    twice = plan_of([*QWEN_RUN, "hardware=h100_x8", "planning.price_per_gpu_hour=4", "planning.teacher.price_out=0"])
    assert twice["cost"] == pytest.approx(2 * once["cost"])
    assert twice["teacher"]["cost"] < once["teacher"]["cost"]
    assert plan_of([*QWEN_RUN, "hardware=h100_x8", "planning=h200"])["device"].startswith("H200")


def test_a_frontier_model_is_planned_and_told_where_the_design_ends() -> None:
    shape = (
        "{model_type: llama, vocab_size: 128256, hidden_size: 16384, intermediate_size: 53248, num_hidden_layers: 126, "
        "num_attention_heads: 128, num_key_value_heads: 8, head_dim: 128, tie_word_embeddings: false}"
    )
    run = ["model=local", "model.path=null", "model.id=x", f"model.shape={shape}", "hardware=h100_x8"]
    plan = plan_of([*run, "hardware.trainer.num_nodes=64", "stage.joint.data.batch_size=512"])
    assert plan["model"]["model"] == 405_853_388_800
    text = " ".join(plan["limits"])
    assert "the verbalizer alone is" in text and "host memory" in text
    assert plan["gather"] != "once"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["planning.mfu.train=1.5"], "planning.mfu.train=1.5"),
        (["planning=h900"], "planning=h900"),
        (["hardware.trainer.strategy=deepspeed"], "deepspeed"),
        (["model=local", "model.path=/nowhere"], "/nowhere"),
        (["model=local", "model.path=null", "model.id=q", "model.shape={hidden_size: 8}"], "model_type"),
    ],
)
def test_mistakes_are_one_line(overrides: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *overrides]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_config_without_weights_is_enough(tmp_path: Path) -> None:
    config_of("qwen3").save_pretrained(tmp_path)
    assert plan_of(["model=local", f"model.path={tmp_path}"])["model"]["blocks"] == 4
    with pytest.raises((ConfigError, ModelError)):
        plan_of(["model=local", f"model.path={tmp_path / 'none'}"])
