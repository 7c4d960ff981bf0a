"""Errors for a person: one line that says what is wrong, with which value, by which rule, and what to do about it.

The console commands print the message without a traceback and end with status 2.
"""


class NLAError(Exception):
    """Base of every error that a person can cause and mend. `details` are further lines, such as a table."""

    status = 2  # of the command that ends with it

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


def outside_environment(error: ModuleNotFoundError) -> str:
    """What to do where a package is missing. Raises the error again for a module of our own."""
    if (error.name or "").startswith("nla."):
        raise error
    return (
        f"no module named {error.name!r}: activate the environment (source .venv/bin/activate), or make one "
        "(make demo, or pip install -e .)"
    )


class ConfigError(NLAError):
    """A setting that is unknown, of the wrong type, or outside its range."""


class DataError(NLAError):
    """Text, positions or stored activations that cannot be used."""


class ModelError(NLAError):
    """A model or tokenizer that cannot be loaded or does not fit."""


class ReleaseError(NLAError):
    """A saved pair whose files or metadata are missing, contradictory or unsafe."""


class InjectionError(NLAError):
    """The activation would not reach the verbalizer's prompt at the one place meant for it."""


class TrainingError(NLAError):
    """A run that cannot continue: non-finite gradients, a collapsed policy, data that lack what a stage needs."""


class CheckpointError(NLAError):
    """A checkpoint that is damaged, unsafe, of another run, or cannot be written."""


class LockError(NLAError):
    """A run folder that another process is at work on."""


class Interrupted(NLAError):
    """A signal asked the run to stop, and it did at a step boundary. The status is the shell's: 128 + signal."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.status = 128 + signal


class TeacherError(NLAError):
    """A teacher that cannot be asked: a wrong key, a service that is down, replies that are no explanations."""


class BudgetError(TeacherError):
    """What a teacher may cost is spent. Everything paid for is kept."""


def first_line(error: BaseException) -> str:
    """What another library's error says, short enough to fit into one of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
