"""The decode loop against Hugging Face's generate, and against itself in other batches."""

import contextlib
import copy
from types import SimpleNamespace

import pytest
import torch
from support.models import FAMILIES, sampling_params
from transformers import LlamaConfig, LlamaForCausalLM

from nla.errors import ConfigError
from nla.models import backbone, sampling
from nla.models.lora import add_lora, merged_state_dict
from nla.models.sampling import engine, hf
from nla.models.sampling.attention import StaticCache
from nla.models.sampling.graphs import GraphedStep

STOPS = {1, 4}
CALL = ("stop_ids", "pad_id", "shared", "seed", "first_row")  # the rest are sampling parameters


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, model_folders: dict[str, str]):
    return backbone.load_model(model_folders[request.param])


@pytest.fixture(scope="module")
def qwen(model_folders: dict[str, str]):
    return backbone.load_model(model_folders["qwen3"])


def prompts(model, batch: int = 3, time: int = 11) -> torch.Tensor:
    tokens = torch.randint(5, 300, (batch, time), generator=torch.Generator().manual_seed(1))
    return backbone.embed(backbone.body(model), tokens).detach()


def run(module, model, inputs, samples=2, **options):
    settings = {"stop_ids": STOPS, "pad_id": 0} | {key: value for key, value in options.items() if key in CALL}
    params = {key: value for key, value in options.items() if key not in CALL}
    return module.sample(model, inputs, sampling_params(samples, **params), **settings)


def test_the_engine_samples_the_distribution_of_generate():
    """All pairs of tokens of a model with 6 tokens, 6000 samples of each: a chi-squared test of homogeneity."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=6, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.5, tie_word_embeddings=True, eos_token_id=5, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    tiny = LlamaForCausalLM(config).eval()
    inputs = 3 * torch.randn(1, 4, 16)
    counts = []
    for module in (engine, hf):
        tokens, mask, _ = module.sample(tiny, inputs, sampling_params(6000, 2), stop_ids={5}, pad_id=0, seed=4)
        second = torch.where(mask[:, 1], tokens[:, 1], 6)  # 6: it stopped
        counts.append(torch.bincount(tokens[:, 0] * 7 + second, minlength=42).double())
    table = torch.stack(counts)[:, sum(counts) >= 10]
    assert table.shape[1] > 15
    expected = table.sum(0) / 2
    statistic = float(((table - expected).square() / expected).sum())
    freedom = table.shape[1] - 1
    assert abs(statistic - freedom) < 4 * (2 * freedom) ** 0.5


def test_log_probs_equal_a_full_forward(model):
    inputs = prompts(model)
    tokens, mask, log_probs = run(engine, model, inputs, samples=3, seed=5)
    decoder = backbone.body(model)
    whole = torch.cat([inputs.repeat_interleave(3, 0), backbone.embed(decoder, tokens)], 1)
    logits = model(inputs_embeds=whole, use_cache=False).logits[:, inputs.shape[1] - 1 : -1].float()
    expected = logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(log_probs[mask], expected[mask], atol=1e-4)
    assert (log_probs[~mask] == 0).all()


def test_mask_ends_with_the_first_stop_token_and_pads_after(qwen):
    stops = set(range(1, 60))  # enough stops that rows end early, at different steps
    tokens, mask, _ = run(engine, qwen, prompts(qwen, 6), samples=8, stop_ids=stops, seed=3)
    lengths = mask.sum(1)
    assert len(lengths.unique()) > 3
    for row, length in zip(tokens.tolist(), lengths.tolist()):
        stopped = [token in stops for token in row[:length]]
        assert not any(stopped[:-1])
        assert stopped[-1] or length == tokens.shape[1]
        assert all(token == 0 for token in row[length:])


def test_dropping_ended_rows_changes_nothing(qwen, monkeypatch: pytest.MonkeyPatch):
    options = {"samples": 8, "stop_ids": set(range(1, 60)), "seed": 3}
    dropped = run(engine, qwen, prompts(qwen, 6), **options)
    monkeypatch.setattr(engine, "COMPACT_BELOW", 0.0)
    kept = run(engine, qwen, prompts(qwen, 6), **options)
    assert torch.equal(dropped[0], kept[0])
    assert torch.equal(dropped[1], kept[1])
    assert torch.allclose(dropped[2], kept[2], atol=1e-5)


def test_looking_rarely_for_ended_rows_changes_nothing(qwen, monkeypatch: pytest.MonkeyPatch):
    """As on a GPU, where each look makes the CPU wait."""
    options = {"samples": 8, "stop_ids": set(range(1, 60)), "seed": 3, "max_new_tokens": 40}
    often = run(engine, qwen, prompts(qwen, 6), **options)
    monkeypatch.setattr(engine, "LOOK_EVERY", {"cpu": 7})
    rarely = run(engine, qwen, prompts(qwen, 6), **options)
    assert torch.equal(often[0], rarely[0])
    assert torch.equal(often[1], rarely[1])


def test_rows_are_in_fact_dropped(qwen, monkeypatch: pytest.MonkeyPatch):
    sizes = []
    change = StaticCache.change

    def noting(self, rows, size):
        sizes.append(len(rows))
        change(self, rows, size)

    monkeypatch.setattr(StaticCache, "change", noting)
    run(engine, qwen, prompts(qwen, 6), samples=8, stop_ids=set(range(1, 60)), seed=3)
    assert sizes
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("shared", [1, 6, 10])
def test_sharing_the_prompts_beginning_changes_nothing(model, shared: int):
    """Before, inside and after the windows of 8 tokens; rows end early, so that fewer rows read the prefixes."""
    inputs = prompts(model, 4)
    inputs[:, :shared] = inputs[:1, :shared]
    options = {"samples": 5, "stop_ids": set(range(1, 40)), "seed": 3}
    whole, apart = run(engine, model, inputs, **options), run(engine, model, inputs, shared=shared, **options)
    assert torch.equal(whole[0], apart[0])
    assert torch.allclose(whole[2], apart[2], atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_static_shapes_change_nothing(model, autocast: bool, monkeypatch: pytest.MonkeyPatch):
    """As for a recorded step: buffers grow by buckets, rows come in multiples."""
    monkeypatch.setattr(engine, "BUCKET", 5)
    monkeypatch.setattr(engine, "ROWS", 4)
    inputs = prompts(model, 4)
    options = {"samples": 4, "stop_ids": set(range(1, 60)), "seed": 3, "shared": 0}
    shapes, usual = [], engine.advance

    def advance(decoder, embeddings, cache, prefixes, position):
        hidden = usual(decoder, embeddings, cache, prefixes, position)
        shapes.append((len(embeddings), cache.layers[0].keys.shape[2]))
        return hidden

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):  # keys and values may then differ in type
        plain = run(engine, model, inputs, **options)
        monkeypatch.setattr(engine, "advance", advance)
        static = run(engine, model, inputs, graphs=True, **options)
    assert torch.equal(plain[0], static[0])
    assert torch.allclose(plain[2], static[2], atol=0.1 if autocast else 1e-5)
    assert {size for _, size in shapes} <= {5, 10, 15, 16}
    assert {rows for rows, _ in shapes} <= {16, 12, 8, 4}
    assert len(set(shapes)) > 2


class Recording:
    """Replaces a CUDA graph: replays the calls made while it was open, into the same output."""

    def __init__(self):
        self.replays = 0

    def replay(self):
        self.replays += 1
        decoder, embeddings, cache, prefixes, position = self.arguments
        self.hidden.copy_(step_of(decoder, embeddings, cache, prefixes, position))


def step_of(decoder, embeddings, cache, prefixes, position):
    return embeddings[:, -1] * 2 + position


def test_a_step_is_recorded_once_for_each_shape_and_replayed_with_new_inputs(monkeypatch: pytest.MonkeyPatch):
    graphs, opened = [], []

    def make():
        graphs.append(Recording())
        return graphs[-1]

    @contextlib.contextmanager
    def record(graph):
        opened.append(graph)
        yield
        opened.pop()

    def step(*arguments):
        hidden = step_of(*arguments)
        for graph in opened:
            graph.arguments, graph.hidden = arguments, hidden
        return hidden

    monkeypatch.setattr(torch.cuda, "CUDAGraph", make)
    monkeypatch.setattr(torch.cuda, "graph", record)
    replayed = GraphedStep(step)
    for number, (rows, size) in enumerate([(4, 8)] * 4 + [(4, 16)] * 3 + [(2, 16)] * 2):
        embeddings, position = torch.randn(rows, 1, 6), torch.full((1, 1), number)
        arguments = (None, embeddings, SimpleNamespace(size=size), [], position)
        assert torch.equal(replayed(*arguments), step_of(*arguments))
    assert [graph.replays for graph in graphs] == [3, 2, 1]


def test_a_step_that_cannot_be_recorded_runs_plainly_with_a_warning(recwarn: pytest.WarningsRecorder):
    replayed = GraphedStep(step_of)  # without a GPU nothing can be recorded
    cache = SimpleNamespace(size=8)
    if torch.cuda.is_available():
        pytest.skip("a GPU is here, and records")
    for number in range(4):
        arguments = (None, torch.randn(2, 1, 6), cache, [], torch.full((1, 1), number))
        assert torch.equal(replayed(*arguments), step_of(*arguments))
    assert len([w for w in recwarn if "not recorded" in str(w.message)]) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_recorded_step_gives_the_same_samples(model):
    cuda = copy.deepcopy(model).cuda()
    inputs = prompts(model, 4).cuda()
    options = {"samples": 4, "stop_ids": set(range(1, 60)), "seed": 3, "shared": 0}
    plain, recorded = (run(engine, cuda, inputs, graphs=graphs, **options) for graphs in (False, None))
    assert torch.equal(plain[0], recorded[0])
    assert torch.allclose(plain[2], recorded[2], atol=1e-4)


def test_weights_are_cast_and_laid_out_only_for_sampling(model):
    """bf16 weights sampled in fp32 give the same as an fp32 copy of them, and are unchanged afterwards."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    whole = copy.deepcopy(half).float()
    kept = {name: (p.data_ptr(), p.dtype, p.stride()) for name, p in half.named_parameters()}
    inputs = prompts(model).to(torch.bfloat16)
    expected = run(engine, whole, inputs.float(), temperature=0)
    sampled = run(engine, half, inputs, temperature=0, dtype="float32")
    assert torch.equal(sampled[0], expected[0])
    assert torch.allclose(sampled[2], expected[2], atol=1e-5)
    assert kept == {name: (p.data_ptr(), p.dtype, p.stride()) for name, p in half.named_parameters()}
    with pytest.raises(RuntimeError, match="stop"), engine.prepared(half, torch.float32):
        raise RuntimeError("stop")
    assert kept == {name: (p.data_ptr(), p.dtype, p.stride()) for name, p in half.named_parameters()}


def adapted(model, strength=0.05):
    """Adapters that change the distribution, on a copy."""
    with_adapter = add_lora(copy.deepcopy(model), rank=4, alpha=8.0)
    torch.manual_seed(0)
    for name, parameter in with_adapter.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=strength)
    return with_adapter.eval()


@pytest.mark.parametrize("autocast", [False, True])
def test_adapters_are_merged_for_sampling_and_taken_out_exactly(model, autocast):
    with_adapter = adapted(model)
    plain = copy.deepcopy(model)
    plain.load_state_dict(merged_state_dict(with_adapter))
    kept = {name: (p.data_ptr(), p.clone()) for name, p in with_adapter.named_parameters()}
    inputs = prompts(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected, sampled = (run(engine, each, inputs, temperature=0) for each in (plain, with_adapter))
        without = run(engine, model, inputs, temperature=0)
        reached = []
        with engine.prepared(with_adapter, None):
            layers = [m for m in with_adapter.modules() if type(getattr(m, "base_layer", None)) is torch.nn.Linear]
            reached = [layer.merged for layer in layers]
            dtypes = {layer.base_layer.weight.dtype for layer in layers}
    others = [m for m in with_adapter.modules() if hasattr(m, "base_layer") and m not in layers]
    if autocast and others:  # GPT-2's Conv1D and experts keep their adapter apart, rounded on its own
        assert torch.allclose(sampled[2][:, 0], expected[2][:, 0], atol=0.1)
    else:
        assert torch.equal(sampled[0], expected[0])
        assert torch.allclose(sampled[2], expected[2], atol=1e-4)
    assert not torch.allclose(sampled[2][:, 0], without[2][:, 0], atol=1e-3)
    assert all(reached)
    assert dtypes <= {torch.bfloat16 if autocast else torch.float32}
    assert not any(layer.merged for layer in layers)
    for name, parameter in with_adapter.named_parameters():
        pointer, before = kept[name]
        assert parameter.data_ptr() == pointer and torch.equal(parameter, before)


def test_the_models_attention_is_restored(model):
    usual = backbone.body(model).config._attn_implementation
    run(engine, model, prompts(model))
    assert backbone.body(model).config._attn_implementation == usual


def test_a_sample_does_not_depend_on_its_batch(model):
    inputs = prompts(model, 4)
    whole = run(engine, model, inputs, seed=7)[0]
    for index in range(4):
        alone = run(engine, model, inputs[index : index + 1], seed=7, first_row=2 * index)[0]
        time = alone.shape[1]
        assert torch.equal(whole[2 * index : 2 * index + 2, :time], alone)


def test_seed_decides(qwen):
    inputs = prompts(qwen)
    for module in (engine, hf):
        first, again, other = (run(module, qwen, inputs, seed=seed)[0] for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert first.shape != other.shape or not torch.equal(first, other)
        assert not torch.equal(first[0], first[1])  # samples of one prompt differ


def test_global_random_state_is_left_alone(qwen):
    for module in (engine, hf):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        run(module, qwen, prompts(qwen))
        assert torch.equal(before, torch.get_rng_state())


def test_uniforms_are_uniform_and_keyed():
    numbers = engine.uniforms(0, 400, 50)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert numbers.mean().item() == pytest.approx(0.5, abs=0.01)
    assert numbers.var().item() == pytest.approx(1 / 12, abs=0.003)
    assert abs(torch.corrcoef(torch.stack([numbers[:-1].flatten(), numbers[1:].flatten()]))[0, 1]) < 0.02
    assert abs(torch.corrcoef(torch.stack([numbers[:, :-1].flatten(), numbers[:, 1:].flatten()]))[0, 1]) < 0.02
    assert torch.equal(engine.uniforms(0, 10, 50, first_row=390), numbers[:, 390:])
    assert torch.equal(engine.uniforms(0, 400, 5), numbers[:5])
    assert not torch.equal(engine.uniforms(1, 400, 50), numbers)


def test_choice_follows_the_distribution():
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(3000, 3)
    points = (torch.arange(3000) + 0.5) / 3000
    tokens, log_probs = engine.choose(logits, points, sampling_params())
    assert torch.allclose(log_probs, logits.gather(1, tokens.unsqueeze(1)).squeeze(1), atol=1e-6)
    assert torch.bincount(tokens, minlength=3).tolist() == [1500, 900, 600]
    assert torch.bincount(engine.choose(logits, points, sampling_params(temperature=0.5))[0], minlength=3)[0] == round(
        3000 * 25 / 38
    )
    assert engine.choose(logits, points, sampling_params(temperature=0.0))[0].unique().tolist() == [0]


def test_impossible_tokens_are_never_chosen():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(3, 3)
    points = torch.tensor([0.0, 0.5, 1 - 2**-24])
    assert engine.choose(logits, points, sampling_params())[0].tolist() == [1, 1, 1]


def test_top_k_and_top_p():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    assert engine.restrict(logits, 1.0, 2).isfinite().tolist() == [[True, True, False, False]]
    assert engine.restrict(logits, 0.6, 0).isfinite().tolist() == [[True, True, False, False]]
    assert engine.restrict(logits, 0.01, 0).isfinite().tolist() == [[True, False, False, False]]
    assert torch.equal(engine.restrict(logits, 1.0, 0), logits)


def test_log_probs_are_raw_at_any_temperature(qwen):
    inputs = prompts(qwen)
    cold = run(engine, qwen, inputs, temperature=0.1, top_k=1, samples=1)
    greedy = run(engine, qwen, inputs, temperature=0, samples=1)
    assert torch.equal(cold[0], greedy[0])
    assert torch.allclose(cold[2], greedy[2], atol=1e-5)
    assert (greedy[2][greedy[1]] < 0).all()


@pytest.mark.parametrize("cap", [1, 2])
def test_the_cap_is_kept(qwen, cap: int):
    tokens, mask, _ = run(engine, qwen, prompts(qwen), max_new_tokens=cap, stop_ids={1})
    assert tokens.shape == (6, cap)
    assert mask.any()


def test_under_bf16_autocast(qwen):
    with torch.autocast("cpu", torch.bfloat16):
        tokens, mask, log_probs = run(engine, qwen, prompts(qwen), seed=2)
    assert log_probs.dtype == torch.float32
    assert log_probs[mask].isfinite().all()
    assert tokens.shape == mask.shape


def test_unknown_backend():
    with pytest.raises(ConfigError, match="engine"):
        sampling.sampler("vllm")
