"""`python -m prunejax.report DIR [DIR ...]`: rebuilds the report of one study."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import NoReturn

from prunejax.report import build
from prunejax.system import command, signals


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.exit(command.tell(message, command.BAD_REQUEST))


@signals.listening("the same command builds the page anew")
def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for directories that cannot be reported on, 1 for a failure.

    75: interrupted, by SIGINT or SIGTERM say.
    """
    command.collect_less()
    parser = _Parser(
        prog="python -m prunejax.report",
        description="Rebuilds report.html, summary.json and figures/ from run directories. "
        "Several directories are merged: shards of one study, or studies side by side.",
    )
    parser.add_argument("directories", nargs="+", metavar="DIR", help="a study's --workdir")
    parser.add_argument("--output", metavar="DIR", help="where to write (default: the first DIR)")
    try:
        options = parser.parse_args(
            command.arguments(sys.argv[1:] if arguments is None else arguments)
        )
        page = build(options.directories, options.output)
    except Exception as error:
        return command.end(error)
    for shard in json.loads(page.with_name("summary.json").read_text())["missing_shards"]:
        signals.tell(f"missing: shard {shard}; its runs are not in any number", sys.stderr)
    signals.tell(str(page), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
