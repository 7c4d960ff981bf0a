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
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from nla.components import suggestion
from nla.config import dotted_keys
from nla.errors import ConfigError, NLAError

MULTIRUN = ("-m", "--multirun")
LONGEST_FOLDER = 160  # characters; file systems stop at 255 bytes


def config_folder() -> Path:
    """`conf/` of the working directory, else of the installed package. Raises ConfigError."""
    package = Path(__file__).resolve().parent
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

    A job of a sweep that fails this way leaves the others to run.
    """
    statuses: list[int] = []
    try:
        for overrides in _jobs(sys.argv[1:]):
            check(compose(config_name, overrides))
        folder = config_folder()
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


def _jobs(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Override lists that together contain every override of every job; none where Hydra's own flags are used."""
    _register_resolvers()
    flags = [argument for argument in arguments if argument.startswith("-")]
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    if any(flag not in MULTIRUN for flag in flags):
        return  # --help, --cfg, --config-dir ...: Hydra answers these
    if not flags:
        yield overrides
        return
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise ConfigError(_explain(error, "")) from error
    choices = [values for values in map(_choices, parsed) if values]
    # every value once, not every combination
    for number in range(max(map(len, choices), default=1)):
        yield [values[min(number, len(values) - 1)] for values in choices]


def _choices(override: Override) -> list[str]:
    """The values of a sweep over this key, each as an override of its own."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if isinstance(override.value(), Glob):
        return []  # expanded by Hydra against the files of a group: they exist
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


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
