"""A pair in use, without training: type of the weights, one shared base for adapters, devices."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import MARKER, TEMPLATES
from support.pairs import LORA, numbers, shaken, vectors
from support.prepared import write_corpus

from nla.commands.cli import main
from nla.config.check import check_evaluate
from nla.config.compose import compose
from nla.errors import ConfigError
from nla.evaluation import program as evaluating
from nla.models.pair import NLA
from nla.models.pretrained.loading import Weights
from nla.models.target import Target

SMALL = ["data.min_context=4", "data.source.min_characters=10", "evaluation.documents=2",
         "evaluation.positions_per_document=2", "evaluation.max_new_tokens=8", "evaluation.neighbour_documents=2",
         "evaluation.bootstrap=20", "evaluation.samples=1"]  # fmt: skip


@pytest.fixture
def adapted(tiny_folder: str, tmp_path: Path) -> NLA:
    """A pair of adapters on one base, a little trained, saved as `pair`."""
    target = Target.from_pretrained(tiny_folder, 1)
    nla = shaken(NLA.from_target(tiny_folder, 1, TEMPLATES, MARKER, adapter=LORA, base=target.model))
    nla.save_pretrained(tmp_path / "pair")
    return nla


def places(module: torch.nn.Module) -> set[int]:
    return {parameter.data_ptr() for name, parameter in module.named_parameters() if _of_the_base(name)}


def _of_the_base(name: str) -> bool:
    return "lora_" not in name and name.rpartition("reconstructor.")[2] != "head.weight"


def test_saved_adapters_are_used_on_the_targets_weights(adapted: NLA, tmp_path: Path):
    target = Target.of_pair(tmp_path / "pair")
    nla = NLA.from_pretrained(tmp_path / "pair", adapter="saved", base=target.model)
    assert places(nla) <= places(target)
    for one, other in zip(numbers(nla), numbers(adapted), strict=True):
        assert torch.equal(one, other)
    whole = NLA.from_pretrained(tmp_path / "pair", adapter="saved")  # nothing to share: merged weights
    assert not places(whole) & places(target) and not any("lora_" in name for name, _ in whole.named_parameters())
    with pytest.raises(ConfigError, match="'yes'"):
        Weights.of((tmp_path / "pair/verbalizer", tmp_path / "pair/reconstructor"), "float32", "yes", target.model)


def test_a_whole_pair_without_adapters_is_left_whole(nla: NLA, tmp_path: Path):
    shaken(nla).save_pretrained(tmp_path / "pair")
    target = Target.of_pair(tmp_path / "pair")
    back = NLA.from_pretrained(tmp_path / "pair", adapter="saved", base=target.model)
    assert not places(back) & places(target)
    for one, other in zip(numbers(back), numbers(nla), strict=True):
        assert torch.equal(one, other)


def test_adapters_on_other_weights_than_the_targets_are_not_saved_as_if_they_were_on_them(
    nla: NLA, tmp_path: Path, tiny_folder: str
):
    """A whole pair continued with adapters: what is read back is what was trained, in the next stage too."""
    shaken(nla).save_pretrained(tmp_path / "whole")
    target = Target.from_pretrained(tiny_folder, 1)
    continued = shaken(NLA.from_pretrained(tmp_path / "whole", adapter=LORA, base=target.model))
    continued.save_pretrained(tmp_path / "continued")
    again = NLA.from_pretrained(tmp_path / "continued", adapter=LORA, base=target.model)
    for one, other in zip(numbers(again), numbers(continued), strict=True):
        assert torch.allclose(one, other, atol=2e-4)
    assert not (tmp_path / "continued/verbalizer/adapter").exists()


def test_sixteen_bits_give_nearly_the_same_numbers(adapted: NLA, tmp_path: Path):
    target = Target.of_pair(tmp_path / "pair", "bfloat16")
    nla = NLA.from_pretrained(tmp_path / "pair", dtype="bfloat16", adapter="saved", base=target.model)
    assert {p.dtype for p in target.parameters()} == {torch.bfloat16}
    assert {p.dtype for n, p in nla.named_parameters() if not _of_the_base(n)} == {torch.float32}
    assert places(nla) <= places(target)
    cosine = torch.nn.functional.cosine_similarity(numbers(nla)[1], numbers(adapted)[1])
    assert float(cosine.min()) > 0.99
    assert len(nla.explain(vectors(2), 2, max_new_tokens=4)) == 2


@pytest.mark.parametrize("how", ["lora", "full"])
def test_evaluation_in_sixteen_bits(how: str, tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With adapters the target, both halves and the warm start's halves share one copy of the weights."""
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "texts.jsonl", 60)
    base = Target.from_pretrained(tiny_folder, 1).model if how == "lora" else None
    nla = NLA.from_target(tiny_folder, 1, TEMPLATES, MARKER, adapter=LORA if how == "lora" else None, base=base)
    nla.save_pretrained(tmp_path / "runs/a/nla", stage="joint")
    shaken(nla).save_pretrained(tmp_path / "runs/a/stages/reconstructor/nla")
    (tmp_path / "runs/a/config.yaml").write_text("model: {dtype: float32}\n")
    seen: dict[str, Any] = {}
    from nla.evaluation import run

    def watched(nla: NLA, target: Target, *given: Any, warm_start: NLA, **named: Any) -> Any:
        seen.update(nla=nla, target=target, warm_start=warm_start)
        return original(nla, target, *given, warm_start=warm_start, **named)

    module = __import__("sys").modules[run.__module__]
    original = module.evaluate
    monkeypatch.setattr(module, "evaluate", watched)
    cfg = compose("evaluate", ["nla=runs/a/nla", "data=text", "data.path=texts.jsonl", "dtype=bfloat16", *SMALL])
    settings = check_evaluate(cfg)
    metrics = json.loads((evaluating.evaluate(settings) / "metrics.json").read_text())
    assert metrics["dtype"] == "bfloat16" and metrics["n"] == 4 and metrics["fve_warm_start"] is not None
    assert {p.dtype for p in seen["target"].parameters()} == {torch.bfloat16}
    for pair in (seen["nla"], seen["warm_start"]):
        assert {p.dtype for n, p in pair.named_parameters() if _of_the_base(n)} == {torch.bfloat16}
        assert (places(pair) <= places(seen["target"])) == (how == "lora")


def test_the_type_is_the_runs_own_else_that_of_the_hardware(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("model: {dtype: nf4}\n")
    assert evaluating.evaluation_dtype(tmp_path, {"precision": "bf16-mixed"}) == "nf4"
    precisions = {"32-true": "float32", "bf16-mixed": "bfloat16", "bf16-true": "bfloat16", "16-mixed": "float16"}
    for precision, dtype in precisions.items():
        assert evaluating.evaluation_dtype(None, {"precision": precision}) == dtype
    with pytest.raises(ConfigError, match=r"precision=transformer-engine.*dtype="):
        evaluating.evaluation_dtype(None, {"precision": "transformer-engine"})
    with pytest.raises(ConfigError, match="dtype='int8'"):
        check_evaluate(compose("evaluate", ["nla=x/y", "dtype=int8"]))


def test_explain_on_a_device_in_a_type(adapted: NLA, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    given = ["explain", str(tmp_path / "pair"), "Tom walks", "--positions", "last", "--max-new-tokens", "4"]
    assert main([*given, "--dtype", "bfloat16", "--device", "cpu"]) == 0
    assert "layer 1" in capsys.readouterr().out
    for wrong, said in (("tpu", "expected one of cpu, cuda, mps"), ("mps", "this machine has no Apple GPU")):
        assert main([*given, "--device", wrong]) == 2
        assert f"--device={wrong}" in (shown := capsys.readouterr().err) and said in shown
    assert main([*given, "--dtype", "int8"]) == 2
    assert "dtype 'int8'" in capsys.readouterr().err
