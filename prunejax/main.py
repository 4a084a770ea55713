"""Command line: `python -m prunejax.main --config=configs/digits.py --workdir=runs/digits`.

Exit codes: 0 done (or finished before), 2 bad request, 1 failure, 75 interrupted after saving:
the same command continues.
"""

import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

BAD_REQUEST, FAILURE, REQUEUE = 2, 1, 75
ROOT = Path(__file__).resolve().parent.parent


def define_flags(values: flags.FlagValues) -> Any:
    """The command's flags; returns the handle of the config flag."""
    handle = config_flags.DEFINE_config_file(
        "config",
        None,
        "File with get_config(arg), e.g. configs/digits.py[:arg].",
        flag_values=values,
    )
    flags.DEFINE_string("workdir", None, "Run directory.", flag_values=values)
    flags.DEFINE_string("shard", "1/1", "i/n: train the i-th of n parts.", flag_values=values)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.", flag_values=values)
    flags.DEFINE_integer("process_id", None, "This process, from 0.", flag_values=values)
    flags.DEFINE_integer("process_count", None, "How many processes.", flag_values=values)
    flags.DEFINE_float(
        "connect_seconds", 300.0, "How long processes wait for each other.", 0.0, flag_values=values
    )
    flags.DEFINE_boolean("quiet", False, "Print no progress.", flag_values=values)
    return handle


def _shard(text: str) -> tuple[int, int]:
    try:
        index, count = (int(part) for part in text.split("/"))
    except ValueError:
        raise ValueError(f"--shard={text!r} must look like 2/8 (the second of eight)") from None
    return index, count


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    argv = list(sys.argv if argv is None else argv)
    values = flags.FlagValues()
    handle = define_flags(values)
    for path in (str(ROOT), str(Path.cwd())):
        if path not in sys.path:
            sys.path.insert(0, path)
    try:
        rest = values(argv)[1:]
        if rest:
            raise ValueError(f"unexpected argument {rest[0]!r}; all arguments are --flags")
        for name in ("config", "workdir"):
            if values[name].value is None:
                raise ValueError(f"--{name} is missing; see the README for a first command")
        shard = _shard(values.shard)
        config = _loaded(values, handle)
    except (flags.Error, ValueError, TypeError, AttributeError, KeyError, OSError) as error:
        return _tell(error, BAD_REQUEST)
    return _run(values, config, shard)


def _loaded(values: flags.FlagValues, handle: Any) -> Any:
    """The config with its overrides; a file that cannot be had is a bad request."""
    config = handle.value
    try:
        config.to_dict()
    except OSError:  # ml_collections puts off telling that there is no such file
        path = config_flags.get_config_filename(values["config"])
        raise ValueError(f"--config={path}: no such file, or it cannot be read") from None
    return config


def _tell(error: BaseException, code: int) -> int:
    print(f"prunejax: {_one_line(error)}", file=sys.stderr)
    return code


def _one_line(error: BaseException) -> str:
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if "Traceback (most recent call last)" in text:  # of a config file: its last line says it all
        text = text.strip().split("\n")[-1]
    elif isinstance(error, AttributeError | KeyError):
        text = f"unknown config field: {text}"
    return " ".join(text.split()) or type(error).__name__


def _run(values: flags.FlagValues, config: Any, shard: tuple[int, int]) -> int:
    # Until the study takes over these signals there is nothing to save.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(REQUEUE))
    # JAX is imported late: mistakes on the command line are told at once.
    from prunejax import distributed

    try:
        distributed.initialize(
            values.coordinator,
            values.process_id,
            values.process_count,
            timeout_seconds=values.connect_seconds,
        )
    except ValueError as error:
        return _tell(error, BAD_REQUEST)
    except ConnectionError as error:
        return _tell(error, FAILURE)
    try:
        code = _study(values, config, shard)
    except Exception:
        traceback.print_exc()
        code = FAILURE
    if code in (BAD_REQUEST, FAILURE):
        distributed.leave(code)
    return code


def _study(values: flags.FlagValues, config: Any, shard: tuple[int, int]) -> int:
    from configs import default
    from prunejax import chunk, study
    from prunejax.record import RecordError, WorkdirError

    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _: stop.append(signum))
    try:
        study.use_devices(config, values.workdir)
        result = study.run(
            config,
            values.workdir,
            default.get_config(),
            shard_of=shard,
            stop_requested=lambda: bool(stop),
            quiet=values.quiet,
        )
    except chunk.Interrupted:
        print("prunejax: interrupted and saved; the same command continues", file=sys.stderr)
        return REQUEUE
    except (study.ConfigError, WorkdirError) as error:
        return _tell(error, BAD_REQUEST)
    except RecordError as error:
        return _tell(error, FAILURE)
    state = "was finished before" if result.already_finished else "finished"
    print(f"{state}: {result.workdir}; report: {result.report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
