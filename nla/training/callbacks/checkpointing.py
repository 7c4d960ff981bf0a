"""When a stage saves, what its checkpoint holds besides Lightning's state, and how it stops on a signal.

A step boundary is the moment after an optimizer step and, where one is due, after its validation. There the ranks agree
whether any of them was asked to stop; if so they save that step and raise `Interrupted`.
"""

import os
import pickle
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch.distributed.tensor import DTensor

from nla.errors import CheckpointError, Interrupted, first_line
from nla.signals import StopRequest
from nla.training.checkpoints import CheckpointFolder, RunIdentity, Saved, check_identity

RNG = "rng"


class Checkpointing(Checkpoint):
    """Replaces Lightning's ModelCheckpoint.

    Besides Lightning's state, a checkpoint holds the random states of every rank. Frozen weights (the target's, under
    LoRA) are left out, unless each rank saves its own share.

    Args:
        folder: of the checkpoints, in that of the stage (`newest` says which).
        every: steps between two of them; the last step is always saved.
        keep: how many are kept, the newest ones.
    """

    def __init__(self, folder: str, every: int, keep: int) -> None:
        self.inside, self.keep, self.every = folder, keep, max(1, every)
        self.folder = CheckpointFolder(Path(folder), keep)
        self.identity: RunIdentity = {}
        self.stop = StopRequest()
        self._rng: list[dict[str, Any]] = []
        self._saved_step = -1

    def newest(self, stage: Path, identity: RunIdentity, *, sharded: bool) -> Saved | None:
        """The checkpoint in the stage's folder from which the run continues; `identity` is written into later ones.

        A whole checkpoint loads on any number of ranks; one in shares only where the strategy is `sharded` too. Raises
        CheckpointError for a checkpoint of another run, and where there are checkpoints but none is valid.
        """
        self.identity = identity
        self.folder = CheckpointFolder(stage / self.inside, self.keep)
        saved = self.folder.newest()
        if saved is not None:
            check_identity(saved, identity, free=("world_size",))
            if saved.sharded and not sharded:
                raise CheckpointError(
                    f"{saved.path} was saved in shares by {saved.identity.get('world_size')} ranks and cannot be "
                    "loaded whole: continue with the hardware config that wrote it"
                )
        return saved

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pl_module.strict_loading = False  # frozen weights are not there; on_load_checkpoint checks the others

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stop.listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.received_sigterm:  # it came before the handlers
            self.stop.signal = int(signal.SIGTERM)
        self.stop.listen()
        if self._rng:
            restore_random(self._rng[trainer.global_rank % len(self._rng)])
            if len(self._rng) != trainer.world_size:  # ranks must not draw alike
                torch.manual_seed(torch.initial_seed() + trainer.global_rank + trainer.global_step)
            self._rng = []
        self._saved_step = trainer.global_step
        self._raise_if_stopped(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not _validates(trainer, batch_idx):
            self._boundary(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._boundary(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._raise_if_stopped(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        states: list[Any] = [random_state()]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, random_state())
        checkpoint[RNG] = states
        weights = checkpoint["state_dict"]
        if not any(isinstance(weight, DTensor) for weight in weights.values()):
            frozen = _frozen(pl_module)
            checkpoint["state_dict"] = {name: weight for name, weight in weights.items() if name not in frozen}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._rng = checkpoint[RNG]
        if "state_dict" in checkpoint:
            wanted = set(pl_module.state_dict()) - _frozen(pl_module)
            wrong = sorted(wanted ^ set(checkpoint["state_dict"]))
            if wrong:
                raise CheckpointError(
                    f"the checkpoint does not hold the weights that this stage trains ({len(wrong)} differ, such as "
                    f"{wrong[0]}): it is of another model"
                )

    def _boundary(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        stopped = self._stopped(trainer)
        due = step % self.every == 0 or step == trainer.max_steps
        if (due or stopped) and step != self._saved_step and not trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            self._save(trainer, step)
        if stopped:
            self._raise(trainer, pl_module, stopped)

    def _raise_if_stopped(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if stopped := self._stopped(trainer):
            self._raise(trainer, pl_module, stopped)

    def _stopped(self, trainer: Trainer) -> int:
        """The signal that any rank has received, the same number on all ranks; 0 for none."""
        if trainer.world_size == 1:
            return self.stop.signal
        noted = torch.tensor(float(self.stop.signal), device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(noted, reduce_op="max"))

    def _raise(self, trainer: Trainer, pl_module: LightningModule, number: int) -> None:
        name = getattr(pl_module, "name", type(pl_module).__name__)
        raise Interrupted(
            f"stage {name} stopped by {signal.Signals(number).name} after step {trainer.global_step} of "
            f"{trainer.max_steps}, which is saved in {self.folder.path}; the same command continues it",
            number,
        )

    def _save(self, trainer: Trainer, step: int) -> None:
        """Raises CheckpointError if the disk is full or forbids it; earlier checkpoints are not touched."""
        try:
            if trainer.is_global_zero:
                self.folder.begin(step)
            trainer.strategy.barrier()
            trainer.save_checkpoint(self.folder.scratch(step) / "state")
            if trainer.is_global_zero:
                self.folder.commit(step, self.identity)
            trainer.strategy.barrier()
        except (OSError, RuntimeError) as error:
            if trainer.is_global_zero:
                self.folder.abandon(step)
            raise CheckpointError(
                f"step {step} cannot be saved in {self.folder.path} ({first_line(error)}): make room or give "
                "permission, then the same command continues from the last checkpoint, which is untouched"
            ) from error
        self._saved_step = step


DATA_MODULES = {"ShardDataModule": "NLADataModule"}  # Lightning keeps a loader's place under its class; before 0.2 two


class StateFile(CheckpointIO):
    """A whole state as one file, read without running anything in it.

    Lightning's own doubles it in memory and goes through the system's folder for temporary files.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with open(path, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path} holds more than tensors and plain values and is refused; nothing in it was run "
                f"({first_line(error)})"
            ) from error
        except (OSError, RuntimeError, EOFError) as error:
            raise CheckpointError(f"{path} cannot be read ({first_line(error)})") from error
        return {DATA_MODULES.get(str(key), str(key)): value for key, value in state.items()}

    def remove_checkpoint(self, path: Any) -> None:
        os.unlink(path)


def random_state() -> dict[str, Any]:
    """The global random states of this process, in types that `torch.load(weights_only=True)` takes."""
    version, words, gauss = random.getstate()
    kind, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, [int(key) for key in keys], int(place), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def restore_random(state: dict[str, Any]) -> None:
    """Set the global random states."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _frozen(module: LightningModule) -> set[str]:
    """Names of the weights that are not trained, under every name they have."""
    return {name for name, weight in module.named_parameters(remove_duplicate=False) if not weight.requires_grad}


def _validates(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a validation follows this step: then the boundary comes after it."""
    every: Any = trainer.val_check_batch
    return bool(trainer.enable_validation) and isinstance(every, int) and (batch_idx + 1) % every == 0
