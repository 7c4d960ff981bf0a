"""FSDP2 around a pair and its target, applied from outside: the models are unaware of it.

Each half and the target is an FSDP root, and each of its blocks is a group of its own. Under FSDP2 all ranks must take
part in every pass through a block, but ranks do not sample or read equally often. `gathered` solves this: it gathers
the weights once, after which no rank waits for another; where they do not fit, ranks that have finished keep taking
part in the gathering of the others.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, distributed, nn
from torch.distributed._composable.checkpoint_activation import checkpoint
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from nla.config.trainer import Gather
from nla.errors import ConfigError
from nla.models.backbone import blocks, body
from nla.models.lora import has_lora
from nla.models.pair import NLA
from nla.models.reconstructor import Reconstructor
from nla.models.reference import Reference
from nla.models.target import Target
from nla.models.verbalizer import Verbalizer

COMPUTE = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # by Lightning's precision; else the weights' own


def shard(
    nla: NLA,
    target: Target,
    device: torch.device,
    precision: str,
    readers: Sequence[Reconstructor] = (),
    reference: Reference | None = None,
) -> None:
    """Spread the weights of both halves, the KL reference, the target and further `readers` over all ranks, in place.

    Stored weights, gradients and the optimizer's state keep the weights' own type (fp32 master weights); gathered
    weights and computation have that of `precision`. Gradients are reduced in fp32. Raises ConfigError for adapters:
    their halves share the target's weights, which cannot belong to several groups.
    """
    if has_lora(nla):
        raise ConfigError(
            "adapter=lora shares one copy of the weights and cannot be sharded: use hardware.trainer.strategy=ddp"
        )
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    policy = MixedPrecisionPolicy(COMPUTE.get(precision), torch.float32, cast_forward_inputs=False)
    for verbalizer in (nla.verbalizer, reference and reference.verbalizer):
        if verbalizer is not None:
            _shard(verbalizer, verbalizer.model, mesh, policy)
            register_fsdp_forward_method(verbalizer, "sample")
    for reconstructor in (nla.reconstructor, *readers):
        fully_shard(reconstructor.head, mesh=mesh)  # stays in fp32
        _shard(reconstructor, reconstructor.body, mesh, policy)
    _shard(target, target.model, mesh, policy)


def _shard(root: nn.Module, model: nn.Module, mesh: DeviceMesh, policy: MixedPrecisionPolicy) -> None:
    # the root is resharded after every pass too: weights left gathered would be stale after an optimizer step
    for block in blocks(body(model)):
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    fully_shard(root, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


@contextmanager
def gathered(module: Verbalizer | Reconstructor | Target, gather: Gather = "once") -> Iterator[None]:
    """Inside, each rank may run the module as often as it needs. Does nothing without FSDP2.

    `once`: all weights in use are gathered at the start and released at the end. `blocks`: one block at a time, in each
    pass; a rank that has finished keeps gathering until all have. All ranks must enter.
    """
    if not isinstance(module, FSDPModule):
        yield
        return
    groups = _groups(module)
    if gather == "once":
        for group in groups:
            group.set_reshard_after_forward(False, recurse=False)
            group.unshard()
        try:
            yield
        finally:
            for group in groups:
                group.reshard()
                group.set_reshard_after_forward(True, recurse=False)
    else:
        # each pass of a reconstructor goes through its root; verbalizer and target hold theirs for all passes
        with _in_step(groups if isinstance(module, Reconstructor) else groups[1:]):
            yield


def _groups(module: FSDPModule) -> list[FSDPModule]:
    """The FSDP groups that a pass uses, in its order: the root, the blocks, a head of its own."""
    groups: list[Any] = [group for group in cast(nn.Module, module).modules() if isinstance(group, FSDPModule)]
    if isinstance(module, Target):  # blocks above its layer are never run
        groups = [module, *list(blocks(body(module.model)))[: module.layer + 1]]
    return groups


@contextmanager
def _in_step(groups: list[FSDPModule]) -> Iterator[None]:
    """Before each pass, which begins with the first group, a rank announces it; a rank that has finished gathers along
    until no rank announces another pass."""
    first = cast(nn.Module, groups[0])
    device = next(first.parameters()).device

    def any_rank(runs: bool) -> bool:
        flag = torch.tensor(float(runs), device=device)
        distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
        return bool(flag)

    def announce(_part: nn.Module, _arguments: Any) -> None:
        any_rank(True)

    handle = first.register_forward_pre_hook(announce, prepend=True)  # before FSDP's own, which gathers
    try:
        yield
    finally:
        handle.remove()
    while any_rank(False):
        for group in groups:
            group.unshard()
            group.reshard()


def meets_in_each_pass(stage: LightningModule) -> bool:
    """Whether ranks wait for one another in each pass through a model, so that all must run equally many."""
    return isinstance(stage.trainer.strategy, (FSDPStrategy, ModelParallelStrategy))


@contextmanager
def reduced_once(model: nn.Module | None) -> Iterator[None]:
    """Inside, gradients of a DDP model add up on their own rank; at the end they are averaged over ranks."""
    if not isinstance(model, DistributedDataParallel):
        yield
        return
    with model.no_sync():
        yield
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    reductions = [
        distributed.all_reduce(gradient.div_(distributed.get_world_size()), async_op=True) for gradient in gradients
    ]
    for reduction in reductions:
        if reduction is not None:
            reduction.wait()


def checkpoint_activations(half: nn.Module) -> None:
    """Blocks keep only their input and run again in the backward pass; names and results do not change."""
    model = half.model if isinstance(half, Verbalizer) else cast(Reconstructor, half).body
    for block in blocks(body(cast(nn.Module, model))):
        checkpoint(block)


def whole(tensor: Tensor) -> Tensor:
    """The full tensor; where it is sharded over ranks, all of them must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def whole_pair(nla: NLA, make: Callable[[], NLA]) -> NLA:
    """A plain pair with a sharded one's weights, on rank 0; the pair itself elsewhere, and where nothing is sharded.

    `make` gives a pair of the same shape, which is filled one weight at a time. All ranks must call.
    """
    if not isinstance(nla.verbalizer, FSDPModule):
        return nla
    plain = make() if distributed.get_rank() == 0 else None
    destination = {} if plain is None else dict(plain.named_parameters())
    for name, weight in nla.named_parameters():
        full = whole(weight)
        if plain is not None:
            destination[name].copy_(full)
    return nla if plain is None else plain
