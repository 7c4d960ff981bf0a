"""Every config composes and passes its checks; every mistake ends with one line, a suggestion and status 2."""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.utils import get_object
from omegaconf import open_dict
from support import ROOT
from support.programs import run

from nla.config.check import check_evaluate, check_train
from nla.config.compose import compose, config_folder, job_folder
from nla.config.run_folder import pinned_revision
from nla.config.schema import LayerSettings
from nla.config.targets import check_components, suggestion
from nla.errors import ConfigError, NLAError
from nla.models.backbone import load_model
from nla.redact import HIDDEN, redacted
from nla.training.build import build_all

OFFLINE = {"published": ["model=qwen2_5_7b"]}  # what a recipe for any model leaves open
GROUPS = sorted(
    path for path in (ROOT / "conf").glob("*/*.yaml") if path.parent.name not in ("corpus", "teacher")
)  # those two are of `nla prepare`: test_prepare.py composes them


@pytest.fixture
def local(tiny_folder: str, tmp_path: Path) -> list[str]:
    """Overrides of a run on a tiny model and a folder with one text."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("some words " * 50)
    return ["experiment=text", f"model.path={tiny_folder}", f"data.path={tmp_path / 'text'}"]


@pytest.mark.parametrize("file", GROUPS, ids=lambda file: f"{file.parent.name}={file.stem}")
def test_every_config_composes(file: Path, local: list[str]):
    group, name = file.parent.name, file.stem
    key = f"stage@stage.{name}" if group == "stage" else group
    if group == "experiment":
        cfg = compose("train", [f"experiment={name}", *(local[1:] if name == "text" else [])])
        assert cfg.name == name
        text = file.read_text()
        assert text.splitlines()[1].startswith("# python train.py")
        if "- published" in text or name == "published":
            checked = check_train(compose("train", [f"experiment={name}", local[2], *OFFLINE.get(name, ())]))
            assert checked.model.shape is None or checked.layer.block(checked.model.shape.num_hidden_layers) > 0
    elif group in ("model", "data"):
        compose("train", [f"{key}={name}"])
        first = file.read_text().splitlines()[0]
        assert group == "data" or re.match(rf"# python train\.py .*(model|experiment)={name}", first)
    elif group in ("pretraining", "planning", "evaluation"):  # of `nla pretrain`, `nla plan` and evaluate.py
        compose("train", [f"+{key}={name}"])
    else:
        check_train(compose("train", [*local, f"{key}={name}"]))


def test_a_missing_extra_is_named(local: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    node = {"wandb": {"_target_": "wandb.Anything"}}
    with pytest.raises(ConfigError, match=r"wandb.* is not installed"):
        build_all(node)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("nmae=x", "nmae: no such key in the config; did you mean 'name'?"),
        ("layer.idx=1", "did you mean 'layer.index'?"),
        ("modle=world", "did you mean 'model'?"),
        ("model=wrold", "model=wrold: no such config, there are .*local, .*world; did you mean 'world'?"),
        ("stage.joint.optimizer.rl=1", "did you mean 'stage.joint.optimizer.lr'?"),
        ("layer.index=1,2", "a sweep .add -m."),
        ("justaword", "justaword: cannot be read as an override; write key=value"),
    ],
)
def test_composition_errors_suggest(override: str, message: str):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        compose("train", [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("layer.index=7", "layer.index=7: the model has 3 blocks.*choose 0 to 2"),
        ("layer.index=two", "layer.index='two': Input should be a valid integer"),
        ("+layer.indx=2", "layer.indx: nothing reads this key; did you mean 'layer.index'"),
        ("seed=-1", "seed=-1: .*greater than or equal to 0"),
        ("stages=[jont]", r"stages\[0\]=jont: no such stage.*did you mean 'joint'"),
        ("name=../elsewhere", "name='../elsewhere': must be a plain folder name"),
        ("name=" + "x" * 300, "must be a plain folder name"),
        ("data.path=/nowhere/at/all", "data.path=/nowhere/at/all: no such file or folder"),
        ("model.path=/nowhere/at/all", "model.path=/nowhere/at/all: no model in this folder.*config.json"),
        ("nla=/nowhere/at/all", "nla=/nowhere/at/all: no such folder"),
        ("model.dtype=float8", "model.dtype='float8': Input should be 'float32', 'bfloat16', 'float16' or 'nf4'"),
        ("stage.joint.optimizer.lr=fast", "stage.joint.optimizer.lr='fast': Input should be a valid number"),
        ("+stage.joint.optimizer.weight_deca=1", "AdamW takes no such key; did you mean 'weight_decay'"),
        ("+stage.joint.clip_nrom=1", "JointStage takes no such key; did you mean 'clip_norm'"),
        ("+hardware.trainer.precison=16", "Trainer takes no such key; did you mean 'precision'"),
        ("data.source._target_=nla.data.text.TextSuorce", "data.source._target_=.*cannot be imported"),
        ("+data.source.colour=red", "TextSource takes no such key"),
        ("data=text_self data.num_workers=2", "data.num_workers=2: .*written in the main process.*data.num_workers=0"),
        ("+teacher@data.teacher=truth", "data.teacher._target_=.*only the target itself .teacher=self.*nla prepare"),
        ("data=text_self data.source.explanation_column=why", "explanation_column=why: .*leave one of the two out"),
        ("data=text_self data.teacher.quoted=two", "data.teacher.quoted"),
        ("data.positions_per_document=0", "data.positions_per_document=0: .*greater than 0"),
        ("model.path=???", "model.path is not set: add model.path=<value>"),
        ("adapter=lora adapter.rank=0", "adapter.rank=0"),
    ],
)
def test_checks_name_key_value_and_fix(override: str, message: str, local: list[str]):
    cfg = compose("train", [*local, *override.split(" ")])
    with pytest.raises(NLAError, match=message) as raised:
        check_train(cfg)
    assert "\n" not in str(raised.value)


def test_the_default_layer_and_fractions(local: list[str]):
    for layer, depth, block in [("early", 28, 7), ("middle", 28, 14), ("two_thirds", 28, 19), ("late", 28, 24)]:
        settings = check_train(compose("train", [*local, f"layer={layer}"]))
        assert settings.layer.block(depth) == block
    assert LayerSettings(index=None, fraction=1.0).block(5) == 4
    assert LayerSettings(index=0, fraction=0.5).block(5) == 0
    assert check_train(compose("train", [*local, "layer.index=2"])).layer.block(3) == 2


def test_an_override_reaches_one_stage(local: list[str]):
    cfg = compose("train", [*local, "stage.joint.optimizer.lr=0.25"])
    assert cfg.stage.joint.optimizer.lr == 0.25
    assert cfg.stage.verbalizer.optimizer.lr != 0.25
    assert cfg.run_dir == "runs/text"


def test_a_foreign_config_names_our_classes_only():
    good = {"_target_": "nla.data.text.TextSource", "path": "x", "fractions": {}, "split_key": "", "text_column": "t",
            "explanation_column": None, "id_column": None, "min_characters": 1, "max_characters": 2,
            "max_chunks": None, "max_documents": None}  # fmt: skip
    check_components(good, "data.source", trusted=False)
    for target in ("torch.load", "os.system", "nla.data.text.Path", "nla.data.text.json.load", "builtins.eval"):
        with pytest.raises(ConfigError, match="data.source._target_"):
            check_components({"_target_": target}, "data.source", trusted=False)
    with pytest.raises(ConfigError, match="data.source.path"):
        check_components({**good, "path": {"_target_": "os.system", "command": "true"}}, "data.source", trusted=False)


def test_evaluation_wants_a_pair(saved_nla: Path):
    check_evaluate(compose("evaluate", [f"nla={saved_nla}"]))
    with pytest.raises(ConfigError, match="nla is not set"):
        check_evaluate(compose("evaluate"))
    with pytest.raises(ConfigError, match=f"did you mean {saved_nla.parent}/nla"):
        check_evaluate(compose("evaluate", [f"nla={saved_nla.parent}"]))


def test_secrets_are_hidden():
    found = redacted(
        {
            "api_key": "abc", "max_new_tokens": 5, "nested": [{"WANDB_API_KEY": "x"}, "plain"], "token": None,
            "url": "https://user:pass@host/x", "note": "key hf_abcdefghijklmnopqrstuvwx here",
        }
    )  # fmt: skip
    assert found == {
        "api_key": HIDDEN, "max_new_tokens": 5, "nested": [{"WANDB_API_KEY": HIDDEN}, "plain"], "token": None,
        "url": f"https://{HIDDEN}@host/x", "note": f"key {HIDDEN} here",
    }  # fmt: skip


def test_names_of_job_folders():
    assert job_folder("layer.index=1,experiment=world") == "layer.index=1,experiment=world"
    assert "/" not in job_folder("data.path=../../etc") and job_folder("data.path=a/b") != job_folder("data.path=a_b")
    assert len(job_folder("x=" + "y" * 500)) < 200


def test_suggestions():
    assert suggestion("layer.indx", ["layer.index", "seed"]) == "; did you mean 'layer.index'?"
    assert suggestion("lr", ["stage.joint.optimizer.lr"]) == "; did you mean 'stage.joint.optimizer.lr'?"
    assert suggestion("zzz", ["name"]) == ""


def test_the_package_finds_its_configs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert config_folder() == ROOT / "conf"
    monkeypatch.chdir(tmp_path)
    assert config_folder() in (ROOT / "conf", ROOT / "nla" / "conf")
    with open_dict(compose("train")) as cfg:
        assert cfg.name == "world"


@pytest.mark.parametrize(
    "arguments",
    [["train.py", "nmae=x"], ["train.py", "-m", "layer.index=two,0"], ["evaluate.py", "nla=/nowhere/at/all"]],
)
def test_a_mistake_ends_with_status_2_and_one_line(arguments: list[str]):
    shown = run(*arguments, cwd=ROOT, status=2)
    lines = [line for line in shown.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "Traceback" not in shown


PARAMETERS = {  # as their model cards say, in billions; of Gemma's larger ones the language model alone
    "qwen2_5_0_5b": 0.494, "qwen2_5_7b": 7.62, "qwen3_8b": 8.19, "gemma3_1b": 1.0, "gemma3_12b": 11.77,
    "gemma3_27b": 27.0, "llama3_2_1b": 1.236, "llama3_3_70b": 70.55,
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_shape_of_a_named_model_has_its_parameters(name: str, local: list[str]):
    """Built on no device from the numbers in conf/model: typed wrong, they would give another count."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = check_train(compose("train", [*local, f"model={name}"])).model.shape
    assert shape is not None
    config = AutoConfig.for_model(**shape.model_dump())
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(PARAMETERS[name], rel=0.01)


def test_a_shape_of_another_model_is_refused(local: list[str], tmp_path: Path):
    settings = check_train(compose("train", [*local, "model=qwen2_5_7b", f"model.id={local[1].partition('=')[2]}"]))
    with pytest.raises(ConfigError, match=r"model\.shape\.model_type=qwen2.*has qwen3"):
        pinned_revision(settings.model, tmp_path)


def test_four_bits_need_adapters_and_bitsandbytes(local: list[str], monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="model.dtype=nf4.*use adapter=lora"):
        check_train(compose("train", [*local, "model.dtype=nf4"]))
    check_train(compose("train", [*local, "model.dtype=nf4", "adapter=lora"]))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="pip install 'nla\\[quantized\\]'"):
        load_model(local[1].partition("=")[2], "nf4")


def test_no_default_is_in_both_yaml_and_code():
    """A value has one home: what conf/ sets, the constructor requires.

    Sources and teachers are also made by hand, in notebooks: their defaults must be those of conf/. None means off.
    """
    doubled = []
    for file in sorted((ROOT / "conf").rglob("*.yaml")):
        for node in nodes_of(yaml.safe_load(file.read_text()) or {}):
            for name, default in defaults_of(node["_target_"]).items():
                by_hand = node["_target_"].startswith("nla.data.") and same(node.get(name), default)
                if name in node and default is not None and not by_hand:
                    doubled.append(f"{file.relative_to(ROOT)}: {node['_target_']}.{name}={default}")
    assert not doubled


def same(value: Any, default: Any) -> bool:
    """Interpolations hand on a value of another key."""
    plain = tuple(value) if isinstance(value, list) else value
    return plain == default or (isinstance(value, str) and value.startswith("${"))


def nodes_of(node: Any) -> Iterator[dict[str, Any]]:
    """Every mapping with a `_target_` of this package."""
    if isinstance(node, dict) and str(node.get("_target_", "")).startswith("nla."):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from nodes_of(child)


def defaults_of(target: str) -> dict[str, Any]:
    """Parameters with a default, the base classes' included."""
    constructor = get_object(target)
    chain = [c for c in reversed(constructor.__mro__) if c.__module__.startswith("nla.")]
    parameters = [p for c in chain if "__init__" in vars(c) for p in inspect.signature(c).parameters.values()]
    return {p.name: p.default for p in parameters if p.default is not p.empty}
