"""Faults A, the checkpoints on disk: damaged, unsafe, of another run, on a full disk; one process at a time."""

import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import overrides, stop, trace, train

from nla import files
from nla.errors import CheckpointError, Interrupted, LockError, ReleaseError
from nla.files import LOCK, locked
from nla.models.pair import NLA
from nla.training.callbacks import StateFile
from nla.training.checkpoints import SCHEMA, CheckpointFolder, check_identity

pytestmark = pytest.mark.usefixtures("here")
STAGE = Path("runs/parts/stages/reconstructor")
IDENTITY = {"layer": 1, "width": 32, "LoRA rank": None, "world_size": 1}


def write(folder: CheckpointFolder, step: int, sharded: bool = False, **identity: Any) -> Path:
    """A small checkpoint, of one file or of two shares."""
    state = folder.begin(step)
    if sharded:
        state.mkdir()
        for rank in range(2):
            (state / f"__{rank}_0.distcp").write_bytes(bytes([step, rank]) * 3000)
    else:
        StateFile().save_checkpoint({"weights": torch.full((3000,), float(step))}, state)
    return folder.commit(step, {**IDENTITY, **identity}).path


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_killed_while_saving(share: float, tiny_folder: str) -> None:
    """Case 6: the older checkpoint loads; what the kill has left is not read, and the next save removes it."""
    arguments = overrides(tiny_folder, "parts", "reconstructor", 4, callbacks__checkpoint__every=1)
    with pytest.raises(Interrupted):
        train(*arguments, stop(2))
    whole = (STAGE / "checkpoints/000002/state").read_bytes()
    part = STAGE / "checkpoints/.000003.part"
    part.mkdir()
    (part / "state").write_bytes(whole[: int(share * len(whole))])
    train(*arguments)
    assert [line["step"] for line in trace("parts")] == [1, 2, 3, 4]
    assert sorted(path.name for path in (STAGE / "checkpoints").iterdir()) == ["000003", "000004"]


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(
    ("damage", "said"),
    [("short", r"bytes of"), ("empty", "0 bytes of"), ("bare", "has no manifest.json"), ("gone", "has no state"),
     ("changed", "is not what was written"), ("garbled", "manifest.json cannot be read")],
)  # fmt: skip
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    damage: str, said: str, sharded: bool, here: Path
) -> None:
    """Case 7: cut short, empty, without manifest or state, a flipped byte; as a file and as a folder of shares."""
    folder = CheckpointFolder(here / "checkpoints", keep=3)
    older = write(folder, 5, sharded)
    newest = write(folder, 10, sharded)
    state = newest / "state"
    victim = sorted(state.iterdir())[1] if sharded else state
    content = victim.read_bytes()
    if damage == "short":
        victim.write_bytes(content[:-100])
    elif damage == "empty":
        for file in state.iterdir() if sharded else [state]:
            file.write_bytes(b"")
    elif damage == "bare":
        (newest / "manifest.json").unlink()
    elif damage == "gone":
        shutil.rmtree(state) if sharded else state.unlink()
    elif damage == "changed":
        victim.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
    else:
        (newest / "manifest.json").write_text('{"schema": 1, "st')
    with pytest.warns(UserWarning, match=said) as said_so:
        found = folder.newest()
    assert found is not None and found.path == older and found.step == 5 and found.sharded == sharded
    assert str(newest) in str(said_so[0].message) and "continuing from step 5" in str(said_so[0].message)
    write(folder, 10, sharded)  # the step comes again and takes the damaged one's place
    again = folder.newest()
    assert again is not None and again.step == 10


@pytest.mark.parametrize("change", ["first byte", "last byte", "length"])
def test_the_digest_of_a_large_file_sees_its_ends_and_its_length(change: str, tmp_path: Path) -> None:
    """Case 7: more than is read of it; the file is a hole, which takes no room."""
    path = tmp_path / "state"
    with path.open("wb") as file:
        file.truncate(300 << 20)
    before = files.digest(path)
    with path.open("r+b") as file:
        if change == "length":
            file.truncate((300 << 20) - 1)
        else:
            file.seek(0 if change == "first byte" else (300 << 20) - 1)
            file.write(b"x")
    assert files.digest(path) != before


def test_no_valid_checkpoint_is_an_error_and_never_a_fresh_start(tiny_folder: str) -> None:
    """Case 7: all are damaged, or those of a finished stage that is to be made longer are gone."""
    arguments = overrides(tiny_folder, "parts", "reconstructor", 4)
    with pytest.raises(Interrupted):
        train(*arguments, stop(2))
    (STAGE / "checkpoints/000002/state").write_bytes(b"")
    metrics = (STAGE / "metrics.csv").read_text()
    with pytest.raises(CheckpointError, match=r"no checkpoint can be used \(.*state has 0 bytes of .*restore one"):
        train(*arguments)
    assert (STAGE / "metrics.csv").read_text() == metrics and len(trace("parts")) == 2
    shutil.rmtree(STAGE)
    train(*arguments)
    shutil.rmtree(STAGE / "checkpoints")
    with pytest.raises(CheckpointError, match="cannot be made longer: it has no checkpoint"):
        train(*overrides(tiny_folder, "parts", "reconstructor", 6))


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes: writes fail half-way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_stops_with_a_message_and_the_last_checkpoint_is_untouched(tiny_folder: str) -> None:
    """Case 8: the write breaks off after 20 kB; later, with room again, the same command continues."""
    arguments = overrides(tiny_folder, "parts", "reconstructor", 6, callbacks__checkpoint__every=2)
    with pytest.raises(Interrupted):
        train(*arguments, stop(3))
    before = files.digest(STAGE / "checkpoints")
    with full_disk(20_000), pytest.raises(CheckpointError, match=r"step 4 cannot be saved in .*make room"):
        train(*arguments)
    assert files.digest(STAGE / "checkpoints") == before
    train(*arguments)
    steps = [line["step"] for line in trace("parts")]
    assert steps == [1, 2, 3, 4, 4, 5, 6]  # step 4 came twice: what was after the last checkpoint
    assert trace("parts")[3] == trace("parts")[4]


def test_a_folder_that_may_not_be_written_stops_with_a_message(tiny_folder: str) -> None:
    """Case 8: no permission (/sys takes no folder even from root)."""
    more = {"callbacks__checkpoint__folder": "/sys/nla", "callbacks__checkpoint__every": 1}
    with pytest.raises(CheckpointError, match=r"step 1 cannot be saved in /sys/nla .*give permission"):
        train(*overrides(tiny_folder, "parts", "reconstructor", 2, **more))
    with pytest.raises(LockError, match="cannot be written to"), locked(Path("/sys/nla")):
        pass


@pytest.mark.parametrize(
    ("key", "value"),
    [("layer", 2), ("width", 64), ("base revision", "abc"), ("LoRA rank", 8), ("start pair", "0123")],
)
def test_a_checkpoint_of_another_run_is_refused_with_a_table(key: str, value: Any, here: Path) -> None:
    """Case 9."""
    folder = CheckpointFolder(here / "checkpoints")
    write(folder, 5)
    saved = folder.newest()
    assert saved is not None
    check_identity(saved, IDENTITY)
    with pytest.raises(CheckpointError, match=rf"000005 is of another run \({key}\)") as caught:
        check_identity(saved, {**IDENTITY, key: value})
    header, row = caught.value.details.splitlines()
    assert header.split() == ["checkpoint", "this", "run"]
    assert row.split() == [*key.split(), str(IDENTITY.get(key)), str(value)]


def test_a_checkpoint_of_a_newer_schema_is_refused(here: Path) -> None:
    """Case 9: a newer version may keep things elsewhere; an older checkpoint is not taken in its place."""
    folder = CheckpointFolder(here / "checkpoints")
    write(folder, 5)
    path = write(folder, 10) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": SCHEMA + 1}))
    with pytest.raises(CheckpointError, match=rf"newer version of nla \(schema {SCHEMA + 1}, this one"):
        folder.newest()


def test_shares_of_several_ranks_are_not_loaded_whole(tiny_folder: str) -> None:
    """Case 9: on another number of ranks a whole state loads; one of shares needs a strategy of shares."""
    from nla.training.callbacks import Checkpointing

    callback = Checkpointing("checkpoints", 1, 2)
    write(callback.folder, 5)
    assert callback.newest(Path(), {**IDENTITY, "world_size": 4}, sharded=False) is not None
    write(callback.folder, 10, sharded=True, world_size=2)
    assert callback.newest(Path(), {**IDENTITY, "world_size": 4}, sharded=True) is not None
    with pytest.raises(CheckpointError, match="saved in shares by 2 ranks and cannot be loaded whole"):
        callback.newest(Path(), {**IDENTITY, "world_size": 2}, sharded=False)


class Malicious:
    """Unpickled, it leaves a file behind."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("canary"),)


def test_a_malicious_pickle_is_refused_and_not_run(tiny_folder: str, saved_nla: Path, here: Path) -> None:
    """Case 11: as a checkpoint whose manifest fits, as pytorch_model.bin, as value_head.pt."""
    arguments = overrides(tiny_folder, "parts", "reconstructor", 4)
    with pytest.raises(Interrupted):
        train(*arguments, stop(2))
    folder = CheckpointFolder(STAGE / "checkpoints")
    good = folder.newest()
    assert good is not None
    torch.save({"state_dict": Malicious()}, folder.begin(3))
    folder.commit(3, good.identity)
    with pytest.raises(CheckpointError, match="holds more than tensors and plain values and is refused"):
        train(*arguments)
    for name in ("verbalizer/pytorch_model.bin", "reconstructor/value_head.pt"):
        (saved_nla / name).write_bytes(pickle.dumps(Malicious()))
        with pytest.raises(ReleaseError, match=rf"{Path(name).name}.*pickled files can run code"):
            NLA.from_pretrained(saved_nla)
        (saved_nla / name).unlink()
    assert not (here / "canary").exists()
    pickle.loads(pickle.dumps(Malicious()))
    assert (here / "canary").exists()  # the payload works where it is loaded


def test_a_second_process_on_a_run_folder_names_the_holder_and_a_dead_one_is_taken_over(
    tiny_folder: str, here: Path
) -> None:
    """Case 12: the holder is a process that is then killed with SIGKILL."""
    run = here / "runs/parts"
    code = f"""
        import sys, time
        from pathlib import Path
        from nla.files import locked
        with locked(Path({str(run)!r})):
            print("held", flush=True)
            time.sleep(600)
    """
    root = str(Path(files.__file__).parents[1])
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": root}
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(LockError, match=rf"in use by process {holder.pid} on .*, since 20"):
            train(*overrides(tiny_folder, "parts", "reconstructor", 1))
        assert not (run / "config.yaml").exists()
    finally:
        holder.kill()
        holder.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with locked(run):
            assert f"process {os.getpid()} " in (run / LOCK).read_text()


@pytest.mark.parametrize("cut", ["before", "between", "after"])
def test_the_exported_pair_survives_a_kill(
    cut: str, nla: NLA, saved_nla: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 6 for the pair: at any moment of an export over an existing pair, the old or the new one is there."""
    from nla.config.run_folder import finished, is_pair

    before = files.digest(saved_nla)
    with torch.no_grad():
        nla.reconstructor.head.weight += 1
    moves: list[str] = []
    replace, remove = os.replace, shutil.rmtree

    def dies(number: int) -> Any:
        def move(source: Any, target: Any) -> None:
            moves.append(str(target))
            if len(moves) == number:
                raise KeyboardInterrupt
            replace(source, target)

        return move

    def dies_at_second(path: Path, **options: Any) -> None:
        moves.append(str(path))
        if sum(".old" in name for name in moves) == 2:
            raise KeyboardInterrupt
        remove(path, **options)

    with monkeypatch.context() as patch:
        if cut == "after":
            patch.setattr(files.shutil, "rmtree", dies_at_second)
        else:
            patch.setattr(files.os, "replace", dies({"before": 1, "between": 2}[cut]))
        with pytest.raises(KeyboardInterrupt):
            nla.save_pretrained(saved_nla)
    assert is_pair(saved_nla) or cut == "between"
    assert finished(saved_nla, 1)  # looks at the folder as the next start does
    assert (files.digest(saved_nla) == before) == (cut != "after")
    NLA.from_pretrained(saved_nla)
    nla.save_pretrained(saved_nla)
    assert [path.name for path in saved_nla.parent.iterdir() if path.name.startswith(".")] == []
