"""The Hugging Face Hub: fetch safe files, name the commit that was used, and say what to do on failure."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from nla.errors import ReleaseError, first_line
from nla.models.pretrained.gguf import content_hash

SAFE_FILES = ("*.safetensors", "*.json", "*.yaml", "*.txt", "*.jinja", "*.model")  # no code, no pickles
PAIRS = Path(__file__).resolve().parents[2] / "pairs"  # pairs that come with the package, by name
COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch(source: str | Path, revision: str | None = None, patterns: Sequence[str] = SAFE_FILES) -> Path:
    """The local folder of a pair or a half: a folder, a packaged pair, else a hub id's files of these patterns.

    Raises ReleaseError with the remedy.
    """
    if os.path.isdir(source):  # unlike Path.is_dir it never raises, whatever the name
        return Path(source)
    if packaged_pair(str(source)) is not None:
        return PAIRS / str(source)
    name, _, at = str(source).partition("@")
    revision = at or revision
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # offline, gated, unknown id, malformed id: many classes
        raise ReleaseError(
            f"{str(source)!r} is neither a folder nor a hub id that can be fetched ({remedy(error, name, revision)})"
        ) from error


def packaged_pair(name: str) -> Path | None:
    """The folder of a pair that comes with the package; None for any other name."""
    folder = PAIRS / name
    return folder if re.fullmatch(r"[\w-]+", name) and os.path.isdir(folder) else None  # never raises


def hub_name(folder: Path) -> str | None:
    """`org/name@commit` of a folder in the hub's cache, `models--org--name/snapshots/<commit>` or inside; else None."""
    for parent in (folder, *folder.parents):
        if COMMIT.fullmatch(parent.name) and parent.parent.name == "snapshots":
            repository = parent.parent.parent.name
            return f"{repository.removeprefix('models--').replace('--', '/')}@{parent.name}"
    return None


def cached_commit(model_id: str | Path, revision: str | None = None) -> str | None:
    """The commit of a hub id's files in the cache, after loading; of a folder made from a GGUF file, the file's hash.

    None for any other folder outside of the cache.
    """
    if os.path.isdir(model_id):
        if (content := content_hash(Path(model_id))) is not None:
            return content
        name = hub_name(Path(model_id))
    else:
        try:
            config = try_to_load_from_cache(str(model_id), "config.json", revision=revision)
        except HFValidationError:  # a packaged target's id
            return None
        name = hub_name(Path(config).parent) if isinstance(config, str) else None
    return name.rpartition("@")[2] if name else None


def remedy(error: BaseException, source: str | Path, revision: str | None = None) -> str:
    """What a failed hub lookup means and what to do; for another error its first line."""
    causes = list(_causes(error))

    def met(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    at = f" at revision {revision!r}" if revision else ""
    if met(GatedRepoError):
        return (
            f"it is gated: accept its terms at https://huggingface.co/{source} with your account, then `hf auth login`"
        )
    if met(RevisionNotFoundError):
        return f"it has no revision {revision!r}: give a branch, a tag or a commit's hash, or null"
    if met(RepositoryNotFoundError):
        return "the hub has no such repository, or it is private: check the id, and `hf auth login` if it is yours"
    if met(IncompleteSnapshotError):
        return f"only some of its files are in the cache{at}: run `hf download {source}` with a network"
    if met(OfflineModeIsEnabled) or "outgoing traffic" in " ".join(map(str, causes)):
        return (
            f"it is not in the cache{at}, and offline mode is on: run `hf download {source}` with a network, "
            "or unset HF_HUB_OFFLINE"
        )
    if met(LocalEntryNotFoundError, ConnectionError):
        return f"the hub cannot be reached, and it is not in the cache{at}: check the network, or give a folder"
    if met(EntryNotFoundError):
        return f"one of its files is missing{at} ({first_line(error)})"
    return first_line(error)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
