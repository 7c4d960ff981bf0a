"""Checks every `_target_` of a config against the constructor it names, before anything is built.

The constructor's signature is the schema: a misspelt key, a wrong type or a missing argument is reported within a
second, before a model is loaded. A config that came with a checkpoint may name nothing but this package's classes.
"""

import dataclasses
import inspect
import typing
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from hydra.utils import get_object
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from nla.errors import ConfigError

OWN = "nla."
HYDRA_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}


def suggestion(word: str, options: Collection[str]) -> str:
    """`; did you mean 'x'?`, or nothing. Dotted keys are compared whole and by their last component."""
    close = get_close_matches(word, list(options), 1, 0.6)
    if not close:
        by_leaf = {option.rpartition(".")[2]: option for option in options}
        close = [by_leaf[leaf] for leaf in get_close_matches(word.rpartition(".")[2], list(by_leaf), 1, 0.75)]
    return f"; did you mean '{close[0]}'?" if close else ""


def check_components(node: Any, key: str, injected: Collection[str] = (), trusted: bool = True) -> None:
    """Walk plain containers and check every mapping that has a `_target_`.

    Args:
        key: dotted key of `node`, for messages.
        injected: arguments that code passes beside the config, to the outermost target.
        trusted: False for a config that came with a checkpoint.

    Raises ConfigError.
    """
    if isinstance(node, Mapping):
        if "_target_" in node:
            _check(node, key, injected, trusted)
            injected = ()
        for name, child in node.items():
            check_components(child, f"{key}.{name}", injected, trusted)
    elif isinstance(node, list):
        for index, child in enumerate(node):
            check_components(child, f"{key}[{index}]", (), trusted)


def _check(node: Mapping[str, Any], key: str, injected: Collection[str], trusted: bool) -> None:
    constructor = _locate(node["_target_"], key, trusted)
    named, open_ended = _parameters(constructor)
    given = [name for name in node if name not in HYDRA_KEYS]
    for name in given if not open_ended else ():
        if name not in named:
            settable = sorted(set(named) - set(injected))
            raise ConfigError(
                f"{key}.{name}: {node['_target_']} takes no such key"
                f"{suggestion(name, settable) or '; it takes ' + ', '.join(settable)}"
            )
    # a subclass may itself give what its base class requires, so only its own requirements count
    required = [p.name for p in _signature(constructor) if p.default is p.empty]
    missing = [name for name in required if name in named and name not in given and name not in injected]
    if missing and not node.get("_partial_") and not node.get("_args_"):
        raise ConfigError(f"{key}.{missing[0]} is not set: {node['_target_']} needs it; add {key}.{missing[0]}=<value>")
    hints = _hints(constructor)
    for name in given:
        if name in hints and not _has_target(node[name]):
            check_type(node[name], hints[name], f"{key}.{name}")
    if not (node.get("_partial_") or node.get("_args_")):
        _check_record(constructor, {name: node[name] for name in given})


def _check_record(constructor: Any, arguments: dict[str, Any]) -> None:
    """A dataclass of this package is constructed once, since `__post_init__` checks rules that types cannot express."""
    is_record = inspect.isclass(constructor) and dataclasses.is_dataclass(constructor)
    if is_record and constructor.__module__.startswith(OWN) and not _has_target(arguments):
        constructor(**arguments)


def takes(node: Mapping[str, Any], name: str) -> bool:
    """Whether the constructor that a checked node names has such a parameter."""
    return name in _parameters(get_object(node["_target_"]))[0]


def check_type(value: Any, hint: Any, key: str) -> None:
    """Raises ConfigError where `value` does not fit the annotation; annotations that pydantic does not know pass."""
    try:
        config = ConfigDict(arbitrary_types_allowed=True, coerce_numbers_to_str=True)
        adapter = TypeAdapter(hint, config=None if hasattr(hint, "__pydantic_config__") else config)
    except (PydanticSchemaGenerationError, PydanticUserError, TypeError, NameError):
        return
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        raise ConfigError(f"{key}={value!r}: {error.errors()[0]['msg']}") from error
    except Exception:
        return  # an annotation whose own check cannot run on plain values


def _locate(path: Any, key: str, trusted: bool) -> Any:
    if not isinstance(path, str):
        raise ConfigError(f"{key}._target_={path!r}: must be the dotted path of a class")
    if not trusted and not path.startswith(OWN):
        raise ConfigError(
            f"{key}._target_={path}: a config that came with a checkpoint may name classes of {OWN}* only; "
            "give the data yourself (data=<name>)"
        )
    try:
        located = get_object(path)
    except Exception as error:  # hydra reports a missing module, class or a failing import alike
        reason = (str(error).strip().splitlines() or [""])[-1]
        raise ConfigError(f"{key}._target_={path}: cannot be imported ({reason}); correct the path") from error
    if not trusted and not (inspect.isclass(located) and str(located.__module__).startswith(OWN)):
        raise ConfigError(f"{key}._target_={path}: is no class of this package; give the data yourself (data=<name>)")
    if not callable(located):
        raise ConfigError(f"{key}._target_={path}: is a {type(located).__name__}, not a class or function")
    return located


def _parameters(constructor: Any) -> tuple[dict[str, inspect.Parameter], bool]:
    """Named parameters, and whether others are accepted.

    A class of this package hands its `**kwargs` to the base class, so their parameters count as its own.
    """
    chain = [constructor]
    if inspect.isclass(constructor) and constructor.__module__.startswith(OWN):
        chain = [c for c in constructor.__mro__ if "__init__" in vars(c) and c.__module__.startswith(OWN)] or chain
    named: dict[str, inspect.Parameter] = {}
    for owner in chain:
        parameters = _signature(owner)
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                named.setdefault(parameter.name, parameter)
        if parameters and all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            return named, False
    return named, True


def _signature(constructor: Any) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(constructor).parameters.values())
    except (TypeError, ValueError):
        return []  # built in C without a signature: nothing to check against


def _hints(constructor: Any) -> dict[str, Any]:
    owners = [constructor]
    if inspect.isclass(constructor):
        owners = [vars(c)["__init__"] for c in reversed(constructor.__mro__[:-1]) if "__init__" in vars(c)]
    hints: dict[str, Any] = {}
    for owner in owners:
        try:
            hints |= typing.get_type_hints(owner)
        except Exception:  # forward references that only a type checker resolves
            continue
    return hints


def _has_target(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "_target_" in value or any(_has_target(child) for child in value.values())
    return isinstance(value, list) and any(_has_target(child) for child in value)
