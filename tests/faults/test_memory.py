"""Case 35 of the fault list on real gloo processes: one rank alone runs out of memory."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from test_parallel import exit_codes, start, work  # noqa: F401


def halves(folder: Path) -> dict[str, torch.Tensor]:
    return {f"{file.parent.name}/{key}": weight for file in sorted(folder.glob("pair/*/*.safetensors"))
            for key, weight in load_file(file).items()}  # fmt: skip


def test_under_ddp_a_rank_halves_alone_and_the_step_is_the_same(work: Path) -> None:  # noqa: F811
    """35: rank 1 fails at its third micro-batch of 8 samples and does the step again with 4, before the reduction."""
    for name in ("ddp-enough", "ddp"):
        start(2, name, work, "short_of_memory", work / name)
    count = {
        name: [int((work / name / f"passes-{rank}").read_text()) for rank in (0, 1)] for name in ("ddp-enough", "ddp")
    }
    assert count["ddp-enough"][0] == count["ddp"][0] == 4
    assert count["ddp"][1] == 3 + 2 * count["ddp-enough"][1]
    expected, found, before = halves(work / "ddp-enough"), halves(work / "ddp"), halves(work)
    assert len(expected) > 40 and any(float((expected[name] - before[name]).abs().max()) > 1e-3 for name in before)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-6)


def test_under_fsdp2_the_rank_says_what_to_do_and_all_end(work: Path) -> None:  # noqa: F811
    """35: rank 1 ends with the message; rank 0, inside a collective, ends too instead of waiting for ever."""
    codes = exit_codes(2, "fsdp2", work, "short_of_memory", work / "fsdp2", grace=30)
    said = (work / "fsdp2/said-1").read_text()
    assert "rank 1: out of memory with micro-batches of 8" in said and "hardware.micro_batch_size=4" in said
    assert codes[1] == 2 and codes[0] not in (None, 0)
    assert not (work / "fsdp2/pair").exists() and not (work / "fsdp2/said-0").exists()
