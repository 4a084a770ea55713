"""Command line: `python -m prunejax.main --config=configs/digits.py --workdir=runs/digits`.

Exit codes: 0 done (or finished before), 2 bad request, 1 failure, 75 interrupted by SIGTERM,
SIGINT, SIGUSR1 or SIGHUP (unless ignored, as under nohup) with what was trained saved: the same
command continues.
"""

import math
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from prunejax.configs import default, shipped
from prunejax.errors import ConfigError, Interrupted
from prunejax.record import remote
from prunejax.study.settings import overrides, resolved, sweep
from prunejax.system import command, limits, signals
from prunejax.system.command import BAD_REQUEST, FAILURE, REQUEUE
from prunejax.system.readable import of_config, readable

ROOT = Path(__file__).resolve().parent.parent
# Seconds (Python's own: 0.005) after which a thread that traces lets the one that trains go on: for
# each of its calls that one waited so long, and cores with it.
TURN = 5e-4


def define_flags(values: flags.FlagValues, argv: list[str]) -> Any:
    """The command's flags; returns the handle of the config flag, which reads overrides in argv."""
    handle = config_flags.DEFINE_config_file(
        "config", None, "File with get_config(arg), e.g. configs/digits.py[:arg].",
        flag_values=values, sys_argv=argv,
    )  # fmt: skip
    flags.DEFINE_string("workdir", None, "Run directory.", flag_values=values)
    flags.DEFINE_string("shard", "1/1", "i/n: train the i-th of n parts.", flag_values=values)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.", flag_values=values)
    flags.DEFINE_integer("process_id", None, "This process, from 0.", flag_values=values)
    flags.DEFINE_integer("process_count", None, "How many processes.", flag_values=values)
    flags.DEFINE_float(
        "connect_seconds", 300.0, "How long processes wait for each other.", 0.0, flag_values=values
    )
    flags.DEFINE_boolean("quiet", False, "Print no progress.", flag_values=values)
    flags.DEFINE_boolean("plan", False, "Tell what would be done; no training.", flag_values=values)
    return handle


def _shard(text: str) -> tuple[int, int]:
    try:
        index, count = (int(part) for part in text.split("/"))
    except ValueError:
        raise ValueError(f"--shard={text!r} must look like 2/8 (the second of eight)") from None
    remote.part(index, count)  # judges it: a plan asks for none
    return index, count


@signals.listening()
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    argv = list(sys.argv if argv is None else argv)
    if {"--help", "-h"} & set(argv):
        return _help()
    values = flags.FlagValues()
    try:
        argv, sweeps = sweep.split(_with_shipped(command.arguments(argv)))
        argv, of_variants = overrides.split(argv)
        logging.set_verbosity(logging.ERROR)  # ml_collections warns of what is told below
        handle = define_flags(values, argv)
        with warnings.catch_warnings():  # of ml_collections, which loads the config file
            warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)
            rest = values(argv)[1:]
        if rest:
            raise ValueError(f"unexpected argument {rest[0]!r}; all arguments are --flags")
        for name in ("config",) if values.plan else ("config", "workdir"):
            if not values[name].present or (name == "workdir" and not values.workdir):
                raise ValueError(f"--{name} is missing; see the README for a first command")
        shard = _shard(values.shard)
        if not math.isfinite(values.connect_seconds):
            raise ValueError(
                f"--connect_seconds={values.connect_seconds}: must be a finite number of seconds"
            )
        config = _loaded(values, handle)
        overrides.apply(config, of_variants)
        sweep.apply(config, sweeps)
        more = [f"--config.variants.{text}" for text in of_variants]
        more += [f"{sweep.FLAG}={text}" for text in sweeps]
        done = not values.plan and _finished_before(values, config, shard)
    except BaseException as error:  # a config file may raise anything, and may exit
        return command.tell(readable(error, argv), BAD_REQUEST)
    if values.plan:
        return _plan(config)
    if done:
        return 0
    from prunejax.report import beside  # late: NumPy comes with it

    with beside.begun():
        return _run(values, config, shard, more)


def _finished_before(values: flags.FlagValues, config: ConfigDict, shard: tuple[int, int]) -> bool:
    """Says so at once if the study plainly is; `_run` decides everything else."""
    if values.process_count is not None or values.coordinator or values.process_id is not None:
        return False
    found = resolved.finished(config, default.get_config(), values.workdir, shard, os.environ)
    if found is not None:
        signals.tell(_told("was finished before", *found), sys.stdout)
    return found is not None


def _told(state: str, workdir: Path | str, page: Path) -> str:
    return f"{state}: {workdir}; report: {page}"


def _with_shipped(argv: Sequence[str]) -> list[str]:
    """Arguments with `--config=prunejax:NAME` as the file of that study."""
    name = "--config="
    return [
        name + shipped.path_of(word.removeprefix(name)) if word.startswith(name) else word
        for word in argv
    ]


def _help() -> int:
    values = flags.FlagValues()
    define_flags(values, [])
    return command.say(
        f"{__doc__}\nconfigs/default.py documents every field; --config.FIELD=VALUE overrides "
        f"one;\n--sweep FIELD=V1,V2 makes variants of its values.\n{values.get_help()}"
    )


def _loaded(values: flags.FlagValues, handle: Any) -> ConfigDict:
    """The config with its overrides; a file that gives none is a bad request."""
    config, path = handle.value, config_flags.get_config_filename(values["config"])
    if config is None:
        raise ValueError(f"--config={path}: get_config() returns None; is its return missing?")
    try:
        if not isinstance(config, ConfigDict):
            config.to_dict()  # ml_collections puts off telling that there is no such file
            raise AttributeError
    except OSError:
        raise ValueError(f"--config={path}: no such file, or it cannot be read") from None
    except AttributeError:
        raise ValueError(
            f"--config={path}: get_config() must return an ml_collections.ConfigDict, not "
            f"{type(config).__name__}; start from prunejax.configs.default.get_config()"
        ) from None
    return config


def _plan(config: ConfigDict) -> int:
    """Tells what a study is going to do."""
    from prunejax.study import preview

    try:
        return command.say("\n".join(preview.lines(config, default.get_config())))
    except Exception as error:
        return command.end(error)


def _run(values: flags.FlagValues, config: Any, shard: tuple[int, int], more: Sequence[str]) -> int:
    command.collect_less()
    sys.setswitchinterval(TURN)
    # JAX is imported late: mistakes on the command line are told at once.
    try:
        limits.check_addresses()
    except ConfigError as error:
        return command.tell(error, BAD_REQUEST)
    from prunejax.cluster import distributed
    from prunejax.report import beside
    from prunejax.study import run as study
    from prunejax.study.devices import host_devices
    from prunejax.system import compiled

    try:
        compiled.use(os.environ)
        distributed.follow_parent(os.environ)
        processes = distributed.initialize(
            values.coordinator,
            values.process_id,
            values.process_count,
            timeout_seconds=values.connect_seconds,
        )
    except (ValueError, OSError) as error:
        return command.end(error)
    try:
        mirror = remote.mirror(values.workdir, *shard, processes)
        host_devices.use(config, mirror.begun() if mirror else values.workdir, processes)
        if not distributed.is_main():
            beside.end()
        result = study.run(
            config, values.workdir, default.get_config(), shard_of=shard,
            stop_requested=signals.requested, quiet=values.quiet,
            command=_command(values, shard, more),
            config_file=config_flags.get_config_filename(values["config"]).partition(":")[0],
        )  # fmt: skip
        if distributed.is_main():
            signals.tell(_ended(values, result), sys.stdout)
        return 0
    except Interrupted:
        return command.tell("interrupted and saved; the same command continues", REQUEUE)
    except Exception as error:
        code, known = FAILURE, command.outcome(error)
        if known is not None:
            code = command.tell(*known)
        elif distributed.lost_peer(error):
            command.tell(
                "another process of this program ended, see its output; the same command "
                f"continues from the last checkpoint ({str(error).strip().splitlines()[-1]})",
                FAILURE,
            )
        else:
            traceback.print_exc()
            if own := of_config(error):
                command.tell(f"raised by code of the config file: {own}", FAILURE)
    if code in (BAD_REQUEST, FAILURE):
        distributed.leave(code)
    return code


def _ended(values: flags.FlagValues, result: Any) -> str:
    """What is told of a study that has ended: a `study.run.Result`."""
    state = "was finished before" if result.already_finished else "finished"
    if result.rebuilt:
        state += ", its lost report is built anew"
    if result.report is None:
        return f"{state}: shard {values.shard} has no runs: the others have them all"
    place = values.workdir if remote.is_remote(values.workdir) else result.workdir
    return _told(state, place, result.report)


def _command(values: flags.FlagValues, shard: tuple[int, int], more: Sequence[str] = ()) -> str:
    """The command that continues or repeats this study, but for `--workdir`.

    It names no place of this machine: a config file of this repository by its path in there, any
    other by its name.
    """
    file, separator, argument = config_flags.get_config_filename(values["config"]).partition(":")
    path = Path(os.path.abspath(file))  # not resolved: configs/ of a clone is a link
    if path.is_relative_to(shipped.FOLDER):
        name = path.relative_to(shipped.FOLDER).with_suffix("").as_posix()
        file = f"{shipped.PREFIX}{name}"
    else:
        file = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    words = ["python", "-m", "prunejax.main", f"--config={file}{separator}{argument}"]
    for name, value in config_flags.get_override_values(values["config"]).items():
        words.append(f"--config.{name}={value}")
    words += more
    words += [f"--shard={shard[0]}/{shard[1]}"] if shard[1] > 1 else []
    return shlex.join(words)


if __name__ == "__main__":
    sys.exit(main())
