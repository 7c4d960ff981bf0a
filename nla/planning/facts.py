"""What is assumed of device, work and prices: the config group `planning`, and seconds that follow from it."""

from typing import Annotated

from pydantic import Field

from nla.config.schema import Settings

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Tokens = Annotated[int, Field(gt=0)]
GIB = 2**30


class Rates(Settings):
    bfloat16: Positive
    float32: Positive


class Utilization(Settings):
    train: Share
    forward: Share


class Launching(Settings):
    eager: float = Field(ge=0)
    recorded: float = Field(ge=0)


class TokenCounts(Settings):
    prompt: Tokens | None
    response: Tokens | None
    warm_start: Tokens | None
    suffix: int = Field(ge=0)
    document: Tokens | None


class TeacherPrices(Settings):
    prompt_tokens: int = Field(ge=0)
    price_in: float = Field(ge=0)
    price_out: float = Field(ge=0)


class Assumptions(Settings):
    """The keys of conf/planning/*.yaml, where each has its unit."""

    device: str
    memory_gib: Positive
    reserved_gib: float = Field(ge=0)
    host_memory_gib: Positive
    fragmentation: float = Field(ge=0, lt=1)
    gpus_per_node: Tokens
    tflops: Rates
    bandwidth_tb_s: Positive
    link_gb_s: Positive
    network_gb_s: Positive
    mfu: Utilization
    decode_bandwidth: Share
    block_seconds: Launching
    price_per_gpu_hour: float = Field(ge=0)
    currency: str
    tokens: TokenCounts
    teacher: TeacherPrices

    @property
    def usable(self) -> float:
        """Bytes of one GPU that a run can fill."""
        return (self.memory_gib - self.reserved_gib) * GIB * (1 - self.fragmentation)

    def rate(self, compute: int) -> float:
        """FLOPs per second of one GPU at its peak, for numbers of this many bytes."""
        return 1e12 * (self.tflops.bfloat16 if compute == 2 else self.tflops.float32)

    def exchange(self, gpus: int) -> float:
        """Bytes per second that each GPU sends in a collective of this many GPUs."""
        return 1e9 * (self.link_gb_s if gpus <= self.gpus_per_node else self.network_gb_s)
