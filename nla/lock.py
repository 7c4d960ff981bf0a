"""One process at a time on a run folder."""

import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from nla.errors import LockError

LOCK = ".lock"


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
