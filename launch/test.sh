#!/usr/bin/env bash
# Checks everything: lint, format, types, and the whole test suite.
#
#   bash launch/test.sh [options of pytest]
#
# Makes .venv and installs the test extra when needed. Exit code 0 if all checks pass.
#
#   --python=PYTHON  the Python that .venv is made with
#   --dry-run        print the commands and stop
#   --help           this text
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

rest=()
for argument in "$@"; do
  case $argument in
    --python=*) PYTHON=${argument#*=} ;;
    --dry-run) DRY_RUN=yes ;;
    --help | -h) show_help ;;
    *) rest+=("$argument") ;;
  esac
done

make_environment test
cd "$ROOT"
python=$VENV/bin/python
failed=
run "$python" -m ruff check . || failed+=" ruff-check"
run "$python" -m ruff format --check . || failed+=" ruff-format"
run "$python" -m mypy || failed+=" mypy"
run "$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder ${rest[@]+"${rest[@]}"} \
  || failed+=" pytest"
if [ -n "$failed" ]; then
  say "failed:$failed"
  exit 1
fi
