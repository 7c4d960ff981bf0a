"""Case 35 of the fault list on real gloo processes: one rank alone runs out of memory."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.ranks import exit_codes, start


def halves(folder: Path) -> dict[str, torch.Tensor]:
    return {f"{file.parent.name}/{key}": weight for file in sorted(folder.glob("pair/*/*.safetensors"))
            for key, weight in load_file(file).items()}  # fmt: skip


def test_under_ddp_a_rank_halves_alone_and_the_step_is_the_same(work: Path) -> None:
    """35: rank 1 fails at its third micro-batch of 8 samples and does the step again with 4, before the reduction.

    Or it fails in sampling, and samples the same tokens two activations at a time.
    """
    for name in ("ddp-enough", "ddp", "ddp-sampling"):
        start(2, name, work, "short_of_memory", work / name)
    count = {
        name: [int((work / name / f"passes-{rank}").read_text()) for rank in (0, 1)] for name in ("ddp-enough", "ddp")
    }
    assert count["ddp-enough"][0] == count["ddp"][0] == 4
    assert count["ddp"][1] == 3 + 2 * count["ddp-enough"][1]
    expected, found, before = halves(work / "ddp-enough"), halves(work / "ddp"), halves(work)
    assert len(expected) > 40 and any(float((expected[name] - before[name]).abs().max()) > 1e-3 for name in before)
    in_parts = halves(work / "ddp-sampling")
    assert len(json.loads((work / "ddp-sampling/sampled-1").read_text())) >= 4
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-6)
        torch.testing.assert_close(in_parts[name], weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("others", ["", "-told"])
def test_under_fsdp2_all_ranks_end_with_the_message_of_the_one(work: Path, others: str) -> None:
    """35: rank 1 runs out; rank 0, inside a collective, says the same on one line and has the same status.

    Its own thread sees what rank 1 has said while it waits in the collective, as it would with NCCL; with `-told` gloo
    tells it of a closed connection.
    """
    out = work / f"fsdp2{others}"
    codes = exit_codes(2, out.name, work, "short_of_memory", out, grace=60)
    assert codes == [2, 2]
    said = [
        [line for line in (out / f"stderr-{rank}").read_text().splitlines() if line.startswith("error:")]
        for rank in (0, 1)
    ]
    assert said[0] == said[1] and len(said[0]) == 1
    assert "rank 1: out of memory with micro-batches of 8" in said[0][0]
    assert "hardware.micro_batch_size=4" in said[0][0]
    assert "Traceback" not in (out / "stderr-0").read_text()
    assert not (out / "pair").exists() and not list(out.glob("passes-*"))
