"""What the commands share: one table of errors and exit codes, and how arguments are read."""

import atexit
import functools
import gc
import os
import re
import sys
import traceback
from collections.abc import Sequence

from absl import flags

from prunejax.errors import (
    ConfigError,
    FigureError,
    RecordError,
    ReportError,
    UnreadableError,
    WorkdirError,
)
from prunejax.system import files, signals
from prunejax.system.readable import meant, of_config, readable

BAD_REQUEST, FAILURE, REQUEUE = 2, 1, signals.INTERRUPTED

_PLACES = ("workdir", "output")  # flags that name one


def tell(error: object, code: int) -> int:
    """Prints one line; returns the code."""
    signals.tell(f"prunejax: {' '.join(str(error).split())}", sys.stderr)
    return code


def say(text: str) -> int:
    """Prints what a command was asked for; returns the exit code: 1 where there is no room."""
    try:
        signals.tell(text, sys.stdout, needed=True)
    except OSError as error:
        return tell(f"standard output: {error.strerror}", FAILURE)
    return 0


def outcome(error: BaseException) -> tuple[str, int] | None:
    """The line and the exit code of an error; None: not expected, its trace is wanted."""
    if isinstance(error, UnreadableError):
        return f"{error}. The records are intact: the same command continues", FAILURE
    if isinstance(error, RecordError):
        return str(error.strerror or error), FAILURE
    if isinstance(error, FigureError):
        return str(error), FAILURE
    if isinstance(error, flags.Error | ConfigError | WorkdirError | ReportError):
        return str(error), BAD_REQUEST
    if isinstance(error, ConnectionError):
        return str(error), FAILURE
    if isinstance(error, OSError):
        where = (
            f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        )
        code = BAD_REQUEST if error.errno in files.OF_PATHS else FAILURE
        return f"{where}{error.strerror or error}", code
    platform = os.environ.get("JAX_PLATFORMS")
    # JAX asserts, without a word, where a platform's plugin is not installed.
    silent = isinstance(error, AssertionError) and not error.args and platform != "cpu"
    if platform and (silent or "nable to initialize backend" in str(error)):
        return (
            f"JAX_PLATFORMS={platform}: JAX cannot use it here; install the build of JAX for it "
            "(extras cuda12, cuda13, tpu), or unset JAX_PLATFORMS, or set it to cpu",
            BAD_REQUEST,
        )
    return None


def end(error: BaseException) -> int:
    """Tells why a command ends, returns its code: a request in a line, a fault with its trace."""
    known = outcome(error)
    if known is None and isinstance(error, ValueError) and meant(error):
        known = str(error), BAD_REQUEST
    if known is not None:
        return tell(*known)
    signals.tell("".join(traceback.format_exception(error)).rstrip(), sys.stderr)
    own = of_config(error)
    if own:
        return tell(f"raised by code of the config file: {own}", FAILURE)
    return tell(
        "this is a fault of the program, not of the request; please report it with the lines above",
        FAILURE,
    )


@functools.cache
def collect_less() -> None:
    """Garbage of many objects is looked for less often in this process, and not at its end.

    Tracing makes objects by the million, and what it makes is kept: each search through all that
    there is stops every thread for a tenth of a second.
    """
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(max(young, 50_000), max(middle, 20), 100)
    atexit.register(gc.freeze)


def arguments(argv: Sequence[str]) -> list[str]:
    """Arguments with "~" expanded where the value of a flag of ours begins with it.

    Raises ConfigError: an argument holds a NUL or is not UTF-8, there is no such user, or a place
    has no name (`--output=$OUT`, `"$OUT"` where that is not set): it is not the current directory.
    """
    words: list[str] = []
    for word in argv:
        if "\0" in word or re.search("[\ud800-\udfff]", word):
            raise ConfigError(f"argument {word!r}: no NUL and nothing but UTF-8 in arguments")
        name, equals, value = word.partition("=")
        flag = name.lstrip("-")
        before = words[-1] if words else ""
        if equals and not value and flag in _PLACES:
            raise ConfigError(f"{name} is missing: nothing stands behind {word}")
        if not word and before.lstrip("-") in _PLACES:
            raise ConfigError(f"{before} is missing: an empty argument stands behind it")
        if not word and not before.startswith("-"):
            raise ConfigError("an argument is empty; name what it is to be, or leave it out")
        if value.startswith("~") and flag in (*_PLACES, "config", "config.data.data_dir"):
            try:
                word = name + equals + files.expand(value)
            except ValueError as error:
                raise ConfigError(f"{name}: {error}") from None
        words.append(word)
    return words


def parsed(values: flags.FlagValues, argv: Sequence[str], known_only: bool = False) -> list[str]:
    """Reads flags; returns the arguments that are none.

    Raises:
      ConfigError: absl, whose errors are of several kinds, takes a flag or its value for wrong.
    """
    try:
        return list(values(argv, known_only=known_only)[1:])
    except (flags.Error, ValueError) as error:
        raise ConfigError(readable(error, argv)) from None
