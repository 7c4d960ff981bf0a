"""Hydra's side: finds `conf/`, composes, and turns a person's mistakes into one line and exit status 2.

Hydra itself ends with status 1 and no suggestion for an unknown key, before our code runs: every config of the command
line, each job of a sweep included, is therefore composed and checked before `@hydra.main` takes over.
"""

import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from nla.config.check import dotted_keys
from nla.config.redact import secret_keys
from nla.config.sweeps import Job, choices, combinations, refuse_secrets, run_jobs
from nla.config.targets import suggestion
from nla.errors import ConfigError, NLAError

MULTIRUN = ("-m", "--multirun")
LAUNCHERS = ("launcher", "hydra/launcher")
LONGEST_FOLDER = 160  # characters; file systems stop at 255 bytes


def config_folder() -> Path:
    """`conf/` of the working directory, else of the installed package. Raises ConfigError."""
    package = Path(__file__).resolve().parents[1]
    for folder in (Path.cwd() / "conf", package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(f"no conf/ in {Path.cwd()} nor in the package: run from the repository, or install nla again")


def compose(config_name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The config of these overrides, as a notebook or test wants it. Raises ConfigError with a suggestion."""
    _register_resolvers()
    with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        try:
            return hydra.compose(config_name, list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_explain(error, config_name)) from error


def launch(task: Callable[[DictConfig], object], config_name: str, check: Callable[[DictConfig], object]) -> int:
    """Run `task` on the command line's config, or on each job of a sweep; the exit status: 2 after a person's mistake,
    128 + signal for a run that a signal has stopped.

    The jobs of a sweep run as processes of their own, unless a launcher of Hydra's is chosen, which does that itself.
    """
    statuses: list[int] = []
    try:
        for overrides in _each_value(sys.argv[1:]):
            cfg = compose(config_name, overrides)
            check(cfg)
            if _launcher(sys.argv[1:]):
                refuse_written(cfg)
        folder = config_folder()
        if jobs := _jobs(sys.argv[1:], config_name):
            return run_jobs(jobs)
    except NLAError as error:
        return report(error)

    @hydra.main(version_base="1.3", config_path=str(folder), config_name=config_name)
    def job(cfg: DictConfig) -> None:
        if HydraConfig.get().mode == RunMode.MULTIRUN and "run_dir" in cfg:
            with open_dict(cfg):
                cfg.run_dir = os.path.relpath(HydraConfig.get().runtime.output_dir)
        try:
            task(cfg)
        except NLAError as error:
            statuses.append(report(error))

    try:
        job()
    except KeyboardInterrupt:  # outside of a stage's training, where it ends a step first
        print("interrupted; the same command continues", file=sys.stderr, flush=True)
        return 130
    return max(statuses, default=0)


def report(error: NLAError) -> int:
    """Say it on one line of stderr, with its details below; the exit status."""
    print("error:" if error.status == 2 else "stopped:", " ".join(str(error).split()), file=sys.stderr, flush=True)
    if error.details:
        print(error.details, file=sys.stderr, flush=True)
    return error.status


def job_folder(overrides: str) -> str:
    """A sweep job's folder from its overrides: one path component, cut short by a hash where it would be too long."""
    name = re.sub(r"[^\w.,=+\[\]-]", "_", overrides).strip(".") or "job"
    if len(name) <= LONGEST_FOLDER and name == overrides:
        return name
    digest = hashlib.blake2b(overrides.encode(), digest_size=4).hexdigest()
    return f"{name[:LONGEST_FOLDER]}-{digest}"


def _register_resolvers() -> None:
    OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)


def _each_value(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Override lists that together contain every override of every job; none where Hydra's own flags are used."""
    _register_resolvers()
    flags, overrides = _split(arguments)
    if any(flag not in MULTIRUN for flag in flags):
        return  # --help, --cfg, --config-dir ...: Hydra answers these
    if not flags:
        yield overrides
        return
    parsed = _parsed(overrides)
    refuse_secrets(parsed)
    values = [given for given in (choices(override, config_folder()) for override in parsed) if given]
    # every value once, not every combination
    for number in range(max(map(len, values), default=1)):
        yield [given[min(number, len(given) - 1)] for given in values]


def _jobs(arguments: Sequence[str], config_name: str) -> list[Job]:
    """The jobs that run as processes of this machine; none for a single run, and none for a launcher's."""
    flags, overrides = _split(arguments)
    if not flags or any(flag not in MULTIRUN for flag in flags):
        return []
    if _launcher(arguments):
        return []
    parsed = _parsed(overrides)
    with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        return [Job(given, _job_place(config_name, given)) for given in combinations(parsed, config_folder())]


def _launcher(arguments: Sequence[str]) -> bool:
    """Whether a launcher of Hydra's was chosen."""
    return any(argument.partition("=")[0] in LAUNCHERS for argument in _split(arguments)[1])


def refuse_written(cfg: DictConfig) -> None:
    """Raises ConfigError for a secret: Hydra's launchers write and pickle the config as it was composed."""
    for key in secret_keys(OmegaConf.to_container(cfg, resolve=False)):
        raise ConfigError(
            f"{key}: Hydra's launcher would write this secret to disk; name an environment variable, "
            f"{key}=${{oc.env:NAME}}, or log in with the tool's own command"
        )


def _job_place(config_name: str, overrides: Sequence[str]) -> Path | None:
    cfg = hydra.compose(config_name, list(overrides), return_hydra_config=True)
    return Path(cfg.hydra.sweep.dir, cfg.hydra.sweep.subdir) if "run_dir" in cfg else None


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags, and overrides."""
    flags = [argument for argument in arguments if argument.startswith("-")]
    return flags, [argument for argument in arguments if not argument.startswith("-")]


def _parsed(overrides: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(_explain(error, "")) from error


def _explain(error: Exception, config_name: str) -> str:
    """Hydra's message in one line, with the nearest known key, group or option."""
    text = str(error)
    if isinstance(error, MissingConfigException):
        found = re.search(r"Could not find '([^']+)'", text)
        options = list(error.options or [])
        group, _, choice = (found.group(1) if found else text).rpartition("/")
        known = f"there are {', '.join(options)}" if options else "there is no such file in conf/"
        return f"{group or 'config'}={choice}: no such config, {known}{suggestion(choice, options)}"
    found = re.search(r"Could not override '([^']+)'", text)
    if isinstance(error, ConfigCompositionException) and found:
        key = found.group(1).split("@")[0]
        return f"{key}: no such key in the config{suggestion(key, _known_keys(config_name))}"
    if "requires --multirun" in text or "--multirun" in text:
        value = re.search(r"[Aa]mbiguous value for argument '([^']+)'|Sweep parameters '([^']+)'", text)
        given = next((part for part in value.groups() if part), "") if value else ""
        return f"{given}: several values need a sweep (add -m), a list needs brackets (key=[a,b])"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read as an override; write key=value, and quote values with special signs"
    return _first_line(error)


def _known_keys(config_name: str) -> list[str]:
    """Dotted keys of the default config, and the groups."""
    folder = config_folder()
    keys = [path.name for path in folder.iterdir() if path.is_dir()]
    try:
        cfg = hydra.compose(config_name)
    except (HydraException, OmegaConfBaseException):
        return keys
    return keys + list(dotted_keys(OmegaConf.to_container(cfg, resolve=False)))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
