"""`python -m prunejax.report DIR [DIR ...]`: rebuilds the report of one study."""

import argparse
import json
import sys
from collections.abc import Sequence

from prunejax.files import RecordError
from prunejax.report import build


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for directories that cannot be reported on."""
    parser = argparse.ArgumentParser(
        prog="python -m prunejax.report",
        description="Rebuilds report.html, summary.json and figures/ from run directories. "
        "Several directories are merged: shards of one study, or studies side by side.",
    )
    parser.add_argument("directories", nargs="+", metavar="DIR", help="a study's --workdir")
    parser.add_argument("--output", metavar="DIR", help="where to write (default: the first DIR)")
    options = parser.parse_args(arguments)
    try:
        page = build(options.directories, options.output)
    except (ValueError, OSError) as error:
        text = error.strerror if isinstance(error, RecordError) else error
        print(f"error: {text}", file=sys.stderr)
        return 2
    for shard in json.loads(page.with_name("summary.json").read_text())["missing_shards"]:
        print(f"missing: shard {shard}; its runs are not in any number", file=sys.stderr)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
