"""One stage of a run as plain numbers, from which memory and time follow."""

from dataclasses import dataclass, replace
from typing import Literal

from nla.planning import flops, memory, work
from nla.planning.facts import Assumptions
from nla.planning.memory import Layout, Memory, count
from nla.planning.shapes import Shape, Size
from nla.planning.work import Pass

Gather = Literal["once", "blocks", "tensor parallel"]


@dataclass(frozen=True, slots=True)
class Task:
    """A stage.

    Args:
        rows: activations per step, all GPUs together. group: samples per activation; 1 in the warm starts.
        micro_batch: samples per backward pass and GPU.
        prompt, shared: tokens of the verbalizer's prompt, and of it before the marker.
        response, cap: tokens of an explanation, and at most. text: of the reconstructor's input.
        documents, document: per step, and tokens read of each.
        muon: for verbalizer and reconstructor, whether their matrices are Muon's.
        rank: of the adapters; None trains all weights. engine: bytes of a number while sampling.
    """

    stage: str
    trains: tuple[str, ...]
    steps: int
    rows: int
    group: int
    micro_batch: int
    prompt: int
    shared: int
    response: int
    cap: int
    text: int
    documents: int
    document: int
    reference: bool
    muon: tuple[bool, bool]
    rank: int | None
    recorded: bool
    engine: int
    shape: Shape
    layer: int
    layout: Layout

    @property
    def rolls_out(self) -> bool:
        return self.stage == "joint"

    @property
    def lower(self) -> Shape:
        """Tables and blocks 0..layer."""
        return self.shape.truncated(self.layer)

    @property
    def local(self) -> int:
        """Activations of the fullest GPU."""
        return -(-self.rows // self.layout.gpus)

    @property
    def micro_batches(self) -> int:
        return -(-self.local * self.group // self._micro())

    def _micro(self) -> int:
        """Samples of a micro-batch: whole groups, at least one."""
        return min(self.local * self.group, max(1, self.micro_batch // self.group) * self.group)

    # what runs

    def trained_pass(self) -> Pass:
        """The verbalizer's, of one micro-batch."""
        return work.teacher_forced(
            self._micro() / self.group, self.group, self.prompt, self.response, self.shape.d_model, self.shared
        )

    def reconstructed_pass(self) -> Pass:
        return work.rows_of(self._micro(), self.text)

    def tensors(self, half: str) -> list[Size]:
        """Parameters that this half trains."""
        shape, head = self.shape, [(self.shape.d_model, self.shape.d_model)]
        if half == "verbalizer":
            return shape.tensors() if self.rank is None else shape.adapter_tensors(self.rank)
        lower = self.lower
        return [*(lower.tensors() if self.rank is None else lower.adapter_tensors(self.rank)), *head]

    def inner(self, half: str) -> list[Size]:
        """Those that Muon takes; with adapters only the reconstructor's head."""
        shape = self.shape if half == "verbalizer" else self.lower
        matrices = [] if self.rank is not None else [size for block in shape.blocks for size in block.inner]
        return matrices if half == "verbalizer" else [*matrices, (self.shape.d_model, self.shape.d_model)]

    def trainable(self) -> list[Size]:
        return [size for half in self.trains for size in self.tensors(half)]

    def weight_bytes(self) -> float:
        """All models that a stage holds, on one GPU: target, both halves, the KL reference."""
        trained_weights = [count(self.tensors(half)) for half in ("verbalizer", "reconstructor")]
        if self.rank is None:
            models = self.shape.parameters + sum(trained_weights) + (self.shape.parameters if self.reference else 0)
        else:
            adapters = sum(trained_weights) + (trained_weights[0] if self.reference else 0)
            base = self.layout.weight if self.layout.frozen is None else self.layout.frozen
            return (base * self.shape.parameters + self.trained_bytes * adapters) / self.layout.shards
        return models * self.layout.weight / self.layout.shards

    @property
    def trained_bytes(self) -> int:
        """Of a trained weight, its gradient and each state; adapters stay in fp32 whatever the type of their base."""
        return self.layout.weight if self.rank is None else 4

    # memory

    def phases(self, gather: Gather = "once") -> dict[str, Memory]:
        """Memory of the fullest GPU in each phase of a step."""
        layout, trained = self.layout, self.trainable()
        shards = layout.shards
        gradients = count(trained) * self.trained_bytes / shards * (2 if layout.strategy == "ddp" else 1)
        muon: dict[str, bool] = dict(zip(("verbalizer", "reconstructor"), self.muon))
        states = sum(
            memory.optimizer_bytes(self.tensors(half), self.inner(half), self.trained_bytes, muon[half]) / shards
            for half in self.trains
        )
        weights = self.weight_bytes()
        phases = {}
        if layout.strategy == "fsdp":  # reading gathers as the rollout does
            lower = memory.gathered(self.lower, layout, False, whole=gather == "once")
            phases["read"] = Memory(weights + lower, gradients, states)
        if self.rolls_out:
            extra = memory.gathered(self.shape, layout, False, whole=gather == "once")
            if gather == "tensor parallel":
                extra = layout.compute * self.shape.parameters / layout.gpus
            if layout.autocast and self.rank is None:
                extra += layout.compute * self.shape.parameters
            elif self.engine < layout.weight and layout.strategy != "fsdp":
                extra += self.engine * self.shape.parameters
            samples = self.local * self.group
            kept = memory.cache(self.shape, layout, samples, self.local, self.prompt, self.shared, self.cap)
            buffers = memory.rollout_buffers(self.shape, layout, samples, self.cap)
            phases["sample"] = Memory(weights + extra, gradients, states, 0, kept, buffers)
        phases["update"] = Memory(
            weights + memory.gathered(self.shape, layout, True), gradients, states, self._activations(), 0, 0
        )
        scratch = count(trained) * self.trained_bytes / shards if layout.fused else 0
        phases["step"] = Memory(weights, gradients, states + scratch)
        return phases

    def _activations(self) -> float:
        adapter, total = self.rank is not None, 0.0
        if "verbalizer" in self.trains:
            total += memory.activations(self.shape, self.layout, self.trained_pass(), adapter)
        if "reconstructor" in self.trains:
            total += memory.activations(self.lower, self.layout, self.reconstructed_pass(), adapter, head=False)
        return total

    def peak(self, gather: Gather = "once") -> float:
        return max(phase.total for phase in self.phases(gather).values())

    def gathered_peak(self, gather: Gather) -> float:
        """Of the phases that depend on how weights are gathered: reading and sampling."""
        return max((m.total for n, m in self.phases(gather).items() if n in ("read", "sample")), default=0)

    # arithmetic

    def flops(self) -> dict[str, float]:
        """FLOPs of one step on all GPUs together, by what runs."""
        shape, lower, rank = self.shape, self.lower, self.rank
        by_model = {"read": flops.forward(lower, work.rows_of(self.documents, self.document))}
        if self.rolls_out:
            first = work.prefill(self.rows, self.prompt, self.shared)
            rest = work.decode(self.rows * self.group, self.prompt, self.response)
            by_model["sample"] = flops.forward(shape, first, rank) + flops.forward(shape, rest, rank)
        samples, recompute = self.rows * self.group, self.layout.checkpointing
        if "verbalizer" in self.trains:
            whole = work.teacher_forced(self.rows, self.group, self.prompt, self.response, shape.d_model, self.shared)
            by_model["verbalizer"] = flops.forward(shape, whole, rank) + flops.backward(shape, whole, rank, recompute)
            if self.reference:
                by_model["reference"] = flops.forward(shape, whole, rank)
        if "reconstructor" in self.trains:
            whole = work.rows_of(samples, self.text)
            head = 2 * shape.d_model**2 * samples
            both = flops.forward(lower, whole, rank) + flops.backward(lower, whole, rank, recompute)
            by_model["reconstructor"] = both + 3 * head
        return by_model

    # time

    def seconds(self, facts: Assumptions, gather: Gather = "once") -> dict[str, float]:
        """Seconds of one step, by phase."""
        layout, work_of = self.layout, self.flops()
        busy = min(layout.gpus, self.rows) if self.rows else 1  # a GPU without an activation waits
        peak = facts.rate(layout.compute) * busy
        seconds = {"read": work_of["read"] / (peak * facts.mfu.forward)}
        if self.rolls_out:
            seconds["sample"] = self._sampling(facts, gather)
        training = sum(work_of.get(name, 0) for name in ("verbalizer", "reconstructor"))
        computing = training / (peak * facts.mfu.train) + work_of.get("reference", 0) / (peak * facts.mfu.forward)
        seconds["update"] = max(computing, self._exchanged() / facts.exchange(layout.gpus))
        # weights and states are read and written, gradients read
        moved = (3 + 4) * count(self.trainable()) * layout.weight / layout.shards
        seconds["step"] = moved / (facts.bandwidth_tb_s * 1e12)
        return seconds

    def _exchanged(self) -> float:
        """Bytes that each GPU sends during the update; hidden behind arithmetic where there is enough of it."""
        layout = self.layout
        if layout.strategy == "ddp":
            return 2 * count(self.trainable()) * layout.weight
        if layout.strategy != "fsdp":
            return 0
        passes = {"verbalizer": self.shape.parameters, "reconstructor": self.lower.parameters}
        once = sum(passes[half] * (2 * layout.compute + 4) for half in self.trains)
        once += self.shape.parameters * layout.compute if self.reference else 0
        return once * self.micro_batches

    def _sampling(self, facts: Assumptions, gather: Gather) -> float:
        layout, shape = self.layout, self.shape
        samples = self.local * self.group
        rate = facts.rate(layout.compute) * facts.mfu.forward
        share = layout.gpus if gather == "tensor parallel" else 1  # of the weights that each GPU reads
        group = samples * share
        touched = sum(self._touched(block, group) for block in shape.blocks) + shape.d_model * shape.vocab
        keys = samples * (self.prompt + self.response / 2) * sum(block.key for block in shape.blocks) * 2
        moved = layout.compute * (touched / share + keys)
        step = flops.forward(shape, Pass(samples, samples * (self.prompt + self.response / 2), samples), self.rank)
        launching = facts.block_seconds.recorded if self.recorded else facts.block_seconds.eager
        least = moved / (facts.bandwidth_tb_s * 1e12 * facts.decode_bandwidth)
        # a GPU computes while the next kernels are launched, a CPU launches and computes in turn
        launched = shape.depth * launching
        one = max(least, step / rate, launched) if layout.fused else max(least, step / rate) + launched
        whole = layout.compute * shape.parameters
        gathering = 0.0
        if layout.strategy == "fsdp":
            rounds = {"once": 1, "blocks": self.response, "tensor parallel": 1 / layout.gpus}[gather]
            gathering = rounds * whole / facts.exchange(layout.gpus)
        if gather == "tensor parallel":  # two sums of the residual stream in each block
            one += 4 * shape.depth * group * shape.d_model * layout.compute / facts.exchange(layout.gpus)
        first = flops.forward(shape, work.prefill(self.local, self.prompt, self.shared), self.rank) / rate
        return first + (self.response - 1) * one + gathering

    @staticmethod
    def _touched(block: memory.Block, samples: float) -> float:
        """Matrix entries that a decode step reads: of the experts, those that some token is routed to."""
        if not block.chosen:
            return block.active
        whole = block.experts * block.experts_in_all / block.chosen
        return block.active - block.experts + whole * min(1.0, samples * block.chosen / block.experts_in_all)

    def with_layout(self, **changes: object) -> "Task":
        return replace(self, layout=replace(self.layout, **changes))  # pyright: ignore[reportArgumentType]
