"""What went wrong with a command line or a config file, in a line that its author understands."""

import dis
import linecache
import os
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from absl import flags

from prunejax.errors import ConfigError

PACKAGE = Path(__file__).resolve().parent.parent

# What parsers of flags say, and what is meant.
_PLAIN = (
    (r"invalid literal for int\(\) with base 10: .*", "not a whole number"),
    (r"could not convert string to float: .*", "not a number"),
    (r"\('Non-boolean argument to boolean flag', .*", "neither true nor false"),
    (r" as a ConfigDict: .*", "; name a field inside, like --config.prune.period=2"),
)


@contextmanager
def judging() -> Iterator[None]:
    """Around what judges a request: a ValueError that is `meant` becomes a ConfigError."""
    try:
        yield
    except ValueError as error:
        if not meant(error):
            raise
        raise ConfigError(str(error)) from error


def meant(error: BaseException) -> bool:
    """Whether an error was raised in so many words, by this package or by a file of the user's.

    A check that refuses what it is given ends in a `raise`. Where NumPy, JAX, the standard library
    or an operation of Python itself raises (arrays that do not broadcast, a `zip` of two lengths,
    an index), nobody judged the request: something is wrong with the program, and its trace is
    wanted. (A fault of ours that a check of ours finds still looks like a request.)
    """
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    if code.co_code[trace.tb_lasti] != dis.opmap["RAISE_VARARGS"]:
        return False
    return Path(code.co_filename).is_relative_to(PACKAGE) or _is_of_user(code.co_filename)


def of_config(error: BaseException) -> str:
    """File and line where code of a config file (a score, a loss, a loader, ...) raised or called
    what raised; "" where none took part.
    """
    found = ""
    trace = error.__traceback__
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        if module.startswith(("config_config", "prunejax_config_")):  # of ml_collections; restored
            found = f"{trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return found


def readable(error: BaseException, argv: Sequence[str]) -> str:
    """What went wrong with command line or config file, in a line."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    kind = type(error).__name__
    said = f"{kind}: {text}" if text else kind
    if "Traceback (most recent call last)" in text:  # ml_collections' words for a config file
        return _of_file(text)
    if isinstance(error, flags.Error | ValueError):
        for theirs, ours in _PLAIN:
            text = re.sub(theirs, ours, text)
        return text or kind
    if "has no attribute 'get_config'" in text:
        return "--config: the file defines no get_config(); see configs/default.py"
    found = re.search(r"<class '([^']*)'>.* does not exist and", text)
    if found and "ConfigDict" not in found[1]:
        kind = found[1].removesuffix("Type").split(".")[-1]
        return f"--config: get_config() returns {kind}, not an ml_collections.ConfigDict"
    frames = traceback.extract_tb(error.__traceback__)
    place = frames[-1]
    if "ml_collections" in place.filename and isinstance(error, AttributeError | KeyError):
        return _unknown_field(text, argv)
    if isinstance(error, SyntaxError):
        if error.filename is None:  # of what cannot be source: a NUL in it, say
            return f"--config: the file is no Python: {error.msg}"
        return f"{error.filename}, line {error.lineno}: {kind}: {error.msg}"
    place = ([frame for frame in frames if _is_of_user(frame.filename)] or [place])[-1]
    return _at(place.filename, place.lineno or 0, said)


def _is_of_user(file: str) -> bool:
    """Whether a file is no library's: what is wrong is wrong there."""
    return not file.startswith(("<", os.path.dirname(os.__file__), str(PACKAGE))) and (
        "site-packages" not in file
    )


def _at(file: str, line: int, text: str) -> str:
    """A mistake with file, line and, where a value has a wrong type, the assignment."""
    words = linecache.getline(file, line).strip() if "original type" in text else ""
    return f"{file}, line {line}: {words + ': ' if words else ''}{text}"


def _of_file(text: str) -> str:
    """The line for a trace that ml_collections put into a text."""
    *_, trace = text.strip().partition("Traceback (most recent call last)")
    frames = re.findall(r'File "(.+?)", line (\d+)', trace)
    places = [place for place in frames if _is_of_user(place[0])]
    raised = re.split(r"\n(?=[\w.]+(?:Error|Exception|Exit|Interrupt)\b)", trace)[-1].strip()
    if raised.startswith("ValueError: "):
        return raised.removeprefix("ValueError: ")
    if not places:  # `get_config` could not be called as it is
        return f"--config: {raised}"
    return _at(places[-1][0], int(places[-1][1]), raised)


def _unknown_field(text: str, argv: Sequence[str]) -> str:
    """An override, or a config file, that names a field which is not there."""
    found = re.search(r"Did you mean \"(.+?)\" instead of \"(.+?)\"", text)
    name = found[2] if found else text.strip("'\" ")
    names = [word.split("=")[0].lstrip("-") for word in argv if "config." in word]
    of = [n for n in names if name in n.split(".")]
    text = f"unknown config field {of[0] if of else name!r}."
    if found:
        text += f" Did you mean {found[1]!r}?"
    return text
