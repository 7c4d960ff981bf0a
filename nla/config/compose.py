"""Finds `conf/`, composes with Hydra, and turns a person's mistake into one line with the nearest known key."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nla.config.check import dotted_keys
from nla.config.targets import suggestion
from nla.errors import ConfigError

LONGEST_FOLDER = 160  # characters; file systems stop at 255 bytes


def config_folder() -> Path:
    """`conf/` of the working directory, else of the installed package. Raises ConfigError."""
    package = Path(__file__).resolve().parents[1]
    for folder in (Path.cwd() / "conf", package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(f"no conf/ in {Path.cwd()} nor in the package: run from the repository, or install nla again")


def compose(config_name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The config of these overrides, for a program, notebook or test. Raises ConfigError with a suggestion."""
    register_resolvers()
    with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        try:
            return hydra.compose(config_name, list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_explain(error, config_name)) from error


def job_folder(overrides: str) -> str:
    """A sweep job's folder from its overrides: one path component, cut short by a hash where it would be too long."""
    name = re.sub(r"[^\w.,=+\[\]-]", "_", overrides).strip(".") or "job"
    if len(name) <= LONGEST_FOLDER and name == overrides:
        return name
    digest = hashlib.blake2b(overrides.encode(), digest_size=4).hexdigest()
    return f"{name[:LONGEST_FOLDER]}-{digest}"


def register_resolvers() -> None:
    OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Hydra's own reading of a command line's overrides. Raises ConfigError."""
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(_explain(error, "")) from error


def _explain(error: Exception, config_name: str) -> str:
    """Hydra's message in one line, with the nearest known key, group or option."""
    text = str(error)
    if isinstance(error, MissingConfigException):
        missing = re.search(r"Could not find '([^']+)'", text)
        options = list(error.options or [])
        group, _, choice = (missing.group(1) if missing else text).rpartition("/")
        known = f"there are {', '.join(options)}" if options else "there is no such file in conf/"
        return f"{group or 'config'}={choice}: no such config, {known}{suggestion(choice, options)}"
    unknown = re.search(r"Could not override '([^']+)'", text)
    if isinstance(error, ConfigCompositionException) and unknown:
        key = unknown.group(1).split("@")[0]
        return f"{key}: no such key in the config{suggestion(key, _known_keys(config_name))}"
    if "requires --multirun" in text or "--multirun" in text:
        value = re.search(r"[Aa]mbiguous value for argument '([^']+)'|Sweep parameters '([^']+)'", text)
        given = next((key for key in value.groups() if key), "") if value else ""
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
