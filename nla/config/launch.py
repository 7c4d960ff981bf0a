"""The command line of train.py and evaluate.py: one run, the jobs of a sweep, or Hydra's own flags; the exit status.

Hydra itself ends with status 1 and no suggestion for an unknown key, before our code runs. So a run is composed and
checked here, and the jobs of a sweep are checked before the first one starts.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from nla.config.compose import compose, config_folder, parse_overrides, register_resolvers
from nla.config.sweeps import Job, choices, combinations, refuse_secrets, run_jobs
from nla.errors import ConfigError, NLAError
from nla.redact import secret_keys

MULTIRUN = ("-m", "--multirun")
LAUNCHERS = ("launcher", "hydra/launcher")
S = TypeVar("S")


def launch(task: Callable[[S], object], config_name: str, check: Callable[[DictConfig], S]) -> int:
    """Run `task` on the command line's settings, or on those of each job of a sweep.

    The status is 2 after a person's mistake, 128 + signal for a run that a signal has stopped. Each job of a sweep is
    a separate process, unless a Hydra launcher is chosen, which starts the jobs itself.
    """
    flags, overrides = _split(sys.argv[1:])
    try:
        if not flags and not any(override.lstrip("+~").startswith("hydra") for override in overrides):
            return _run(task, check(compose(config_name, overrides)))
        if flags and all(flag in MULTIRUN for flag in flags):
            _check_sweep(overrides, config_name, check)
            if not _launcher(overrides):
                return run_jobs(_jobs(overrides, config_name))
    except NLAError as error:
        return report(error)
    return _by_hydra(task, config_name, check)


def _run(task: Callable[[S], object], settings: S) -> int:
    """Log lines go to stdout, as under `hydra/job_logging: stdout`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    try:
        task(settings)
    except NLAError as error:
        return report(error)
    except KeyboardInterrupt:  # outside a stage's training; inside, the step is finished first
        return _interrupted()
    return 0


def _by_hydra(task: Callable[[S], object], config_name: str, check: Callable[[DictConfig], S]) -> int:
    """Hydra's own flags (--help, --cfg, --config-dir ...), its own overrides and its launchers."""
    statuses: list[int] = []

    @hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=config_name)
    def job(cfg: DictConfig) -> None:
        if HydraConfig.get().mode == RunMode.MULTIRUN and "run_dir" in cfg:
            with open_dict(cfg):
                cfg.run_dir = os.path.relpath(HydraConfig.get().runtime.output_dir)
        try:
            task(check(cfg))
        except NLAError as error:
            statuses.append(report(error))

    try:
        register_resolvers()
        job()
    except KeyboardInterrupt:
        return _interrupted()
    return max(statuses, default=0)


def _interrupted() -> int:
    print("interrupted; the same command continues", file=sys.stderr, flush=True)
    return 130


def report(error: NLAError) -> int:
    """Print the error on one line of stderr, its details below it, and return the exit status."""
    print("error:" if error.status == 2 else "stopped:", " ".join(str(error).split()), file=sys.stderr, flush=True)
    if error.details:
        print(error.details, file=sys.stderr, flush=True)
    return error.status


def refuse_written(cfg: DictConfig) -> None:
    """Raises ConfigError for a secret: Hydra's launchers write and pickle the config as it was composed."""
    for key in secret_keys(OmegaConf.to_container(cfg, resolve=False)):
        raise ConfigError(
            f"{key}: Hydra's launcher would write this secret to disk; name an environment variable, "
            f"{key}=${{oc.env:NAME}}, or log in with the tool's own command"
        )


def _check_sweep(overrides: Sequence[str], config_name: str, check: Callable[[DictConfig], object]) -> None:
    """Check every value of every key before the first job starts. Raises NLAError."""
    for values in _each_value(parse_overrides(overrides)):
        cfg = compose(config_name, values)
        check(cfg)
        if _launcher(overrides):
            refuse_written(cfg)


def _each_value(parsed: Sequence[Override]) -> Iterator[list[str]]:
    """Override lists that together contain every override of every job: every value once, not every combination."""
    refuse_secrets(parsed)
    values = [given for given in (choices(override, config_folder()) for override in parsed) if given]
    for number in range(max(map(len, values), default=1)):
        yield [given[min(number, len(given) - 1)] for given in values]


def _jobs(overrides: Sequence[str], config_name: str) -> list[Job]:
    """The jobs that run as processes of this machine."""
    parsed = parse_overrides(overrides)
    register_resolvers()
    with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        return [Job(given, _job_folder(config_name, given)) for given in combinations(parsed, config_folder())]


def _job_folder(config_name: str, overrides: Sequence[str]) -> Path | None:
    cfg = hydra.compose(config_name, list(overrides), return_hydra_config=True)
    return Path(cfg.hydra.sweep.dir, cfg.hydra.sweep.subdir) if "run_dir" in cfg else None


def _launcher(overrides: Sequence[str]) -> bool:
    """Whether a Hydra launcher was chosen."""
    return any(override.partition("=")[0] in LAUNCHERS for override in overrides)


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags, and overrides."""
    flags = [argument for argument in arguments if argument.startswith("-")]
    return flags, [argument for argument in arguments if not argument.startswith("-")]
