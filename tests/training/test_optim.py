"""Which parameters Muon takes: by module, in every family, and for the world the same as a bound on rows chose."""

import pytest
import torch
from support.models import FAMILIES

from nla.models.backbone import load_model
from nla.models.lora import add_lora
from nla.models.pair import NLA
from nla.models.parameters import inner_matrices, trainable
from nla.models.prompts import Templates
from nla.planning.shapes import shape_of
from nla.training.optim import MATRICES, MuonAdamW, parameter_groups

RATES = {"lr": 1e-3, "muon_lr": 1e-2, "weight_decay": 0.0, "betas": (0.9, 0.98)}


@pytest.fixture(scope="module")
def world() -> NLA:
    return NLA.from_target("world", 2, Templates("{injection_char}", "<text>{explanation}</text><summary>"))


def test_of_the_world_it_takes_what_it_took_when_rows_decided(world: NLA) -> None:
    """Versions before this one took every matrix with fewer than 1024 rows: the demo's numbers hold."""
    for half in (world.verbalizer, world.reconstructor):
        before = {id(weight) for weight in half.parameters() if weight.ndim == 2 and weight.shape[0] < 1024}
        assert {id(weight) for weight in inner_matrices(half)} == before


@pytest.mark.parametrize("family", FAMILIES)
def test_tables_heads_norms_and_adapters_are_left_to_adamw(model_folders: dict[str, str], family: str) -> None:
    """The planner counts the same matrices from the config alone."""
    model = load_model(model_folders[family])
    inner = {id(weight) for weight in inner_matrices(model)}
    names = {name for name, weight in model.named_parameters() if id(weight) in inner}
    assert names and not [
        name for name in names if "embed" in name or "head" in name or "norm" in name or "wte" in name
    ]
    sizes = sorted(tuple(weight.shape) for weight in model.parameters() if id(weight) in inner)
    assert sizes == sorted(size for block in shape_of(model.config).blocks for size in block.inner)
    if family != "gpt2":
        assert trainable(add_lora(model, rank=2, alpha=4, dropout=0.0))
        assert not {id(weight) for weight in inner_matrices(model)} & {id(weight) for weight in trainable(model)}


def test_each_parameter_is_in_one_group_of_the_optimizer(world: NLA) -> None:
    halves = {"verbalizer": world.verbalizer, "reconstructor": world.reconstructor}
    groups = parameter_groups(halves, {"verbalizer": {"muon_lr": 0.0}})
    optimizer = MuonAdamW(groups, **RATES)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for half in halves.values() for p in half.parameters())
    muon = [group for group in optimizer.param_groups if "ns_steps" in group]
    assert [group["name"] for group in muon] == ["reconstructor"]
    assert len(muon[0]["params"]) == len(groups[1][MATRICES]) > 10


def test_a_group_that_does_not_say_what_it_holds_is_refused() -> None:
    from nla.errors import ConfigError

    with pytest.raises(ConfigError, match="lacks the key 'matrices'"):
        MuonAdamW([{"params": [torch.nn.Parameter(torch.zeros(2, 2))]}], **RATES)
