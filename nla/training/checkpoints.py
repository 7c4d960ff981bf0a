"""The checkpoints of one stage on disk: how they are written, found, checked, kept and removed.

    checkpoints/000050/state           a file, or a folder where every rank writes its own share
    checkpoints/000050/manifest.json   written last: step, identity of the run, size and digest of the state

A checkpoint is filled in a scratch folder and renamed, so every checkpoint was finished. One that is damaged later (cut
short, emptied, without its manifest) is named and skipped for the one before.
"""

import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nla import files
from nla.errors import CheckpointError

SCHEMA = 1
STATE, MANIFEST = "state", "manifest.json"
RunIdentity = Mapping[str, str | int | float | None]


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint whose manifest and state agree."""

    path: Path
    step: int
    identity: dict[str, Any]

    @property
    def state(self) -> Path:
        return self.path / STATE

    @property
    def sharded(self) -> bool:
        """Whether each rank wrote its own share."""
        return self.state.is_dir()


class CheckpointFolder:
    """All checkpoints of a stage. `keep` of them are kept, the newest ones."""

    def __init__(self, path: Path, keep: int = 2) -> None:
        self.path, self.keep = path, max(1, keep)

    def scratch(self, step: int) -> Path:
        """The folder in which a checkpoint is filled; it is never read."""
        return files.scratch_of(self.path / f"{step:06d}")

    def begin(self, step: int) -> Path:
        """Make an empty scratch folder and return the path of the state in it. One rank calls it."""
        scratch = self.scratch(step)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        return scratch / STATE

    def commit(self, step: int, identity: RunIdentity) -> Saved:
        """Write the manifest, move the checkpoint into place, remove old ones. One rank calls it."""
        scratch, path = self.scratch(step), self.path / f"{step:06d}"
        state = scratch / STATE
        manifest = {"schema": SCHEMA, "step": step, "bytes": size(state), "digest": files.digest(state)}
        files.write_text(scratch / MANIFEST, json.dumps({**manifest, "facts": dict(identity)}, indent=2) + "\n")
        shutil.rmtree(path, ignore_errors=True)  # a damaged one of this step, which was skipped
        os.replace(scratch, path)
        self._prune(step)
        return Saved(path, step, dict(identity))

    def abandon(self, step: int) -> None:
        """Remove what a failed write has left."""
        shutil.rmtree(self.scratch(step), ignore_errors=True)

    def newest(self) -> Saved | None:
        """The newest valid checkpoint; None if none was ever finished.

        Damaged ones are named in a warning. Raises CheckpointError if there are checkpoints but none is valid,
        because a fresh start would silently discard work; and for one of a newer schema.
        """
        problems = []
        for path in sorted(self._paths(), key=step_of, reverse=True):
            saved = self._read(path)
            if isinstance(saved, Saved):
                for problem in problems:
                    warnings.warn(f"{problem}; continuing from step {saved.step}, {saved.path}", stacklevel=2)
                return saved
            problems.append(saved)
        if problems:
            raise CheckpointError(
                f"{self.path}: no checkpoint can be used ({'; '.join(problems)}): restore one, or remove "
                f"{self.path.parent} to start the stage anew"
            )
        return None

    def up_to(self, step: int) -> list[Path]:
        """The checkpoints of a step and of those before it, the newest last."""
        return [path for path in sorted(self._paths(), key=step_of) if step_of(path) <= step]

    def _paths(self) -> list[Path]:
        return [path for path in self.path.glob("[0-9]*") if path.name.isdigit()]

    def _read(self, path: Path) -> Saved | str:
        """The checkpoint, or what is wrong with it."""
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return f"{path} has no {MANIFEST}"
        except (OSError, ValueError):
            return f"{path / MANIFEST} cannot be read"
        if manifest.get("schema", 0) > SCHEMA:
            raise CheckpointError(
                f"{path} was written by a newer version of nla (schema {manifest['schema']}, this one knows {SCHEMA}): "
                "install that version, or choose name=<another>"
            )
        state = path / STATE
        if not state.exists():
            return f"{path} has no {STATE}"
        if size(state) != manifest.get("bytes"):
            return f"{state} has {size(state)} bytes of {manifest.get('bytes')}"
        if files.digest(state) != manifest.get("digest"):
            return f"{state} is not what was written"
        return Saved(path, int(manifest["step"]), dict(manifest.get("facts", {})))

    def _prune(self, step: int) -> None:
        """Remove leftovers of killed writes, later checkpoints that were skipped, and all but the newest `keep`."""
        paths = sorted(self._paths(), key=step_of, reverse=True)
        kept = [path for path in paths if step_of(path) <= step][: self.keep]
        for path in self.path.iterdir():
            if path.is_dir() and path not in kept:
                shutil.rmtree(path, ignore_errors=True)


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name)


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def check_identity(saved: Saved, wanted: RunIdentity, free: tuple[str, ...] = ()) -> None:
    """Raises CheckpointError with a table of what differs between the checkpoint's run and this one."""
    keys = [key for key in dict.fromkeys([*saved.identity, *wanted]) if key not in free]
    rows = [(key, str(saved.identity.get(key)), str(wanted.get(key))) for key in keys]
    differing = [row for row in rows if row[1] != row[2]]
    if not differing:
        return
    table = [("", "checkpoint", "this run"), *differing]
    widths = [max(len(row[column]) for row in table) for column in range(2)]
    lines = [f"  {row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}" for row in table]
    names = ", ".join(row[0] for row in differing)
    raise CheckpointError(
        f"{saved.path} is of another run ({names}): restore the settings, or choose name=<another>", "\n".join(lines)
    )
