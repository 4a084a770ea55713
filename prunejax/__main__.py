"""One command line: `prunejax run | list | measure | report | show | export`.

    prunejax run --config=prunejax:digits --workdir=runs/digits    a study
    prunejax list                                                  the studies that come along
    prunejax measure --workdir=DIR --run=RULE --names=tic          more measures of a finished one
    prunejax report DIR [DIR ...]                                  its page anew, or of several
    prunejax show DIR                                              what is in a run directory
    prunejax export --ticket=RUN --workdir=DIR --output=FILE       masks and start state of a run
    prunejax export --workdir=DIR --run=RUN --output=FILE          a network: .npz, .safetensors,
                                                                   .pt or .stablehlo; --shrink
                                                                   without dead units, --fold
                                                                   without BatchNorm as well

`python -m prunejax.main`, `.measure` and `.report` are doors to the same commands. Exit codes:
0 done, 2 bad request, 1 failure, 75 interrupted with everything saved.
"""

import re
import sys
from collections.abc import Callable, Sequence

from prunejax import registry
from prunejax.configs import shipped
from prunejax.errors import ConfigError
from prunejax.record import remote
from prunejax.system import command, files, signals


def _run(argv: Sequence[str]) -> int:
    from prunejax import main

    return main.main(["prunejax run", *argv])


def _measure(argv: Sequence[str]) -> int:
    from prunejax import measure

    return measure.main(["prunejax measure", *argv])


def _report(argv: Sequence[str]) -> int:
    from prunejax.report import __main__ as report

    try:
        return report.main(list(argv))
    except SystemExit as end:  # of its parser, which has told what is wrong
        return int(end.code or 0)


def _list(argv: Sequence[str]) -> int:
    if argv:
        raise ConfigError(f"unexpected argument {argv[0]!r}; prunejax list takes none")
    found = shipped.studies().items()
    return command.say("\n".join(f"prunejax:{n:24} {shipped.title(path)}" for n, path in found))


def _show(argv: Sequence[str]) -> int:
    if len(argv) != 1:
        raise ConfigError("prunejax show DIR: give one run directory")
    paths, lines = remote.find(argv), []
    for path in paths:
        settings, status = files.read_object(path / "config.json"), path / "status.json"
        finished = status.is_file() and files.read_object(status).get("finished")
        lines += [f"place    {path.name}"] if len(paths) > 1 else []
        lines.append(f"study    {settings.get('name', '?')}{'' if finished else ' (not finished)'}")
        arms = settings.get("variants")
        lines.append(f"arms     {', '.join(arms) if isinstance(arms, dict) else '?'}")
        lines.append(f"seeds    {settings.get('seeds')} from {settings.get('first_seed')}")
        for table in sorted(path.glob("*.csv")):
            rows = max(0, table.read_bytes().count(b"\n") - 1)
            lines.append(f"table    {table.name}: {rows} rows")
        if (path / "report.html").is_file():
            lines.append(f"report   {path / 'report.html'}")
    return command.say("\n".join(lines))


def _export(argv: Sequence[str]) -> int:
    from prunejax.study import export
    from prunejax.study.planning import ticket_file

    flags = {"--shrink", "--fold"} & set(argv)
    words = [word for word in argv if word not in flags]
    found = [re.fullmatch("--?([a-z]+)=(.*)", word, re.DOTALL) for word in words]
    given = {match[1]: match[2] for match in found if match}
    of = "ticket" if "ticket" in given else "run"
    whole = of == "run" or not flags  # nothing is left out of a ticket
    if set(given) != {of, "workdir", "output"} or len(given) != len(words) or not whole:
        raise ConfigError(
            "prunejax export needs --workdir=DIR --output=FILE, and --run=RUN (a network; with "
            "--shrink without its dead units, with --fold without BatchNorm) or --ticket=RUN "
            "(masks and start state)"
        )
    if of == "run":
        path = export.export(
            given["workdir"], given["run"], given["output"], shrunk="--shrink" in flags,
            fold="--fold" in flags,
        )  # fmt: skip
        signals.tell(f"{path}: {path.stat().st_size:,} bytes", sys.stdout)
        return 0
    told = ticket_file.export(given["workdir"], given["ticket"], given["output"])
    total = sum(told["size"].values())
    kind = "filters" if told["granularity"] == "filter" else "weights"
    signals.tell(
        f"{given['output']}: {told['live_total']:,} of {total:,} {kind} live, level "
        f"{told['level']} of {told['run']}, start state {told['rewound_to']}",
        sys.stdout,
    )
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "run": _run,
    "list": _list,
    "measure": _measure,
    "report": _report,
    "show": _show,
    "export": _export,
}
_WITHOUT_FLAGS = ("list", "show", "export")  # all that there is to say stands above


@signals.listening("give the same command again")
def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("--help", "-h", "help"):
        told = command.say(__doc__ or "")
        return told if words else command.BAD_REQUEST
    name, *rest = words
    try:
        registry.one_of(name, COMMANDS, f"unknown command {name!r}; there are")
        if name in _WITHOUT_FLAGS and {"--help", "-h"} & set(rest):
            return command.say(__doc__ or "")
        return COMMANDS[name](command.arguments(rest))
    except Exception as error:
        return command.end(error)


if __name__ == "__main__":
    sys.exit(main())
