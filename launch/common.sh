# shellcheck shell=bash
# What every launcher shares. Sourced, not run; written for bash 3.2 and later.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=${PRUNEJAX_VENV:-$ROOT/.venv}
DRY_RUN=no

say() { printf '%s\n' "$*" >&2; }

# Bad request: one line, exit code 2.
refuse() {
  say "$(basename "$0"): $*"
  exit 2
}

# The comment at the head of a script is its help.
show_help() {
  awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"
  exit 0
}

# A command as a line that can be pasted into a shell.
quoted() {
  local word line=
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=,@%+-]*) word="'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'" ;;
    esac
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# Runs a command; in a dry run prints it.
run() {
  if [ "$DRY_RUN" = yes ]; then quoted "$@"; else "$@"; fi
}

absolute() {
  # shellcheck disable=SC2088
  case $1 in
    "~" | "~/"*) printf '%s\n' "$HOME${1#"~"}" ;;
    "~"*) refuse "$1: write the home directory of another user out, or ./$1" ;;
    /* | *://*) printf '%s\n' "$1" ;;
    *) printf '%s\n' "$PWD/$1" ;;
  esac
}

# A config as the caller meant it: in the current directory if it is there, else in the repository.
# "FILE.py:argument" keeps its argument.
config_path() {
  local file argument=
  case $1 in "~"*) set -- "$(absolute "$1")" || exit $? ;; esac
  file=$1
  case $1 in
    *.py:*)
      file=${1%%.py:*}.py
      argument=${1#"$file"}
      ;;
  esac
  if [ ! -e "$file" ] && [ -e "$ROOT/$file" ]; then file=$ROOT/$file; fi
  printf '%s\n' "$(absolute "$file")$argument"
}

# Sets ARGS to the arguments with the path of --config resolved (--config=FILE or --config FILE).
resolve_config() {
  ARGS=()
  while [ $# -gt 0 ]; do
    case $1 in
      --config=?*) ARGS+=("--config=$(config_path "${1#*=}")") ;;
      --config)
        [ $# -ge 2 ] || refuse "--config needs a file: --config=configs/digits.py"
        ARGS+=("--config=$(config_path "$2")")
        shift
        ;;
      *) ARGS+=("$1") ;;
    esac
    shift
  done
}

# Splits the arguments of a cluster launcher: its own options go to "own_option", which refuses what
# it does not know; --config and --workdir, made absolute, and --config.FIELD=VALUE go to ARGS.
# Whatever follows "--" goes to prunejax.main as it is. A launcher whose jobs run on other machines
# sets REMOTE=yes first: a path relative to the caller's directory means nothing there.
CONFIG='' WORKDIR='' REMOTE=no
cluster_arguments() {
  ARGS=()
  local argument
  for argument in "$@"; do # YAML would make a space of a line break
    case $argument in
      *[[:cntrl:]]*) refuse "${argument%%[[:cntrl:]]*}...: a line break, or another control character, in an option" ;;
    esac
  done
  while [ $# -gt 0 ]; do
    case $1 in
      --help | -h) show_help ;;
      --dry-run) DRY_RUN=yes ;;
      --config | --workdir) refuse "write $1=VALUE" ;;
      --config=?*)
        CONFIG=$(config_path "${1#*=}") || exit $?
        [ -f "${CONFIG%%.py:*}" ] || [ -f "${CONFIG%%.py:*}.py" ] || refuse "$1: no such file, here or in the repository"
        ;;
      --workdir=*://*) refuse "$1 is no path: mount the bucket where the study runs and name that" ;;
      --workdir=?*)
        case $1/ in */../* | */./*) if [ "$REMOTE" = yes ]; then refuse "$1: write the path without . and .."; fi ;; esac
        case $REMOTE$1 in yes--workdir=[!/]*) refuse "$1: write the path on the workers, from / on" ;; esac
        WORKDIR=$(absolute "${1#*=}") || exit $?
        ;;
      --config.?*=*) ARGS+=("$1") ;;
      --)
        shift
        ARGS+=("$@")
        break
        ;;
      *) own_option "$1" || refuse "unknown option $1 (see --help; flags of prunejax.main go after --)" ;;
    esac
    shift
  done
  [ -n "$CONFIG" ] || refuse "--config=FILE is missing"
  [ -n "$WORKDIR" ] || refuse "--workdir=DIR is missing"
}

# number NAME VALUE [MOST]: a count of at least 1, or one line and exit code 2.
number() {
  case $2 in
    '' | *[!0-9]* | 0*) refuse "$1=$2: give a whole number of at least 1" ;;
  esac
  # Longer ones overflow the shell's arithmetic.
  if [ ${#2} -gt 9 ] || [ "$2" -gt "${3:-65536}" ]; then refuse "$1=$2: at most ${3:-65536}"; fi
}

# cloud_name NAME VALUE MOST: a name as clouds and DNS take it.
cloud_name() {
  local LC_ALL=C
  case $2 in
    [!a-z]* | *[!a-z0-9-]* | *-) refuse "$1=$2: a lower-case letter, then such letters, digits and inner hyphens" ;;
  esac
  [ ${#2} -le "$3" ] || refuse "$1=$2: ${#2} characters, $3 at most"
}

# A secret by which the processes of one program know each other.
new_secret() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }

PYTHON_IS_GOOD='import sys; assert sys.version_info >= (3, 11)'

# The first Python of at least 3.11, or the one that was asked for.
find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c "$PYTHON_IS_GOOD" 2>/dev/null; then
      command -v "$candidate"
      return 0
    fi
    [ "$candidate" != "${PYTHON-}" ] || refuse "--python=$PYTHON: not a Python of at least 3.11"
  done
  refuse "no Python of at least 3.11 on PATH: install one, or pass --python=/path/to/python"
}

python_version() { "$1" -c 'import sys; print(sys.version)' 2>/dev/null; }

# What an installation was made from; it is redone when any of this changes.
stamp() {
  printf '%s\n%s\n' "$ROOT" "$(python_version "$VENV/bin/python")"
  cat "$ROOT/pyproject.toml"
}

# 0: --python, where given, is the Python of the environment.
same_python() {
  [ -z "${PYTHON-}" ] || [ "$(python_version "$PYTHON")" = "$(python_version "$VENV/bin/python")" ]
}

# 0: the environment has this extra ("" for none) as pyproject.toml asks now.
environment_is_ready() {
  local file=$VENV/prunejax-installed/${1:-base}
  [ -x "$VENV/bin/python" ] && [ -f "$file" ] && [ "$(stamp)" = "$(cat "$file")" ] && same_python
}

# 0: there is an environment to install into. 1: it must be made (again). An environment that
# somebody else made is used if it works, and never removed.
environment_is_usable() {
  [ -e "$VENV" ] || return 1
  if [ -e "$VENV/made-by-prunejax" ]; then
    [ -d "$VENV/prunejax-installed" ] && [ ! -e "$VENV/prunejax-installed/cut-off" ] && same_python &&
      "$VENV/bin/python" -c 'import pip' 2>/dev/null
    return
  fi
  if ! same_python || ! "$VENV/bin/python" -c "$PYTHON_IS_GOOD; import pip" 2>/dev/null; then
    refuse "$VENV is no working environment of ${PYTHON:-Python 3.11 or later}: remove it, or set PRUNEJAX_VENV"
  fi
}

# What a study needs, read from prepared sets as well, and what the caller asks for on top.
study_extra() { printf '%s' "study,tfds${PRUNEJAX_EXTRA:+,$PRUNEJAX_EXTRA}"; }

# make_environment EXTRA: a virtual environment with prunejax installed in place. Returns at once
# when there is nothing to do; a changed pyproject.toml or Python, a moved clone, and an
# installation that was cut off are installed again. Two launchers at once take turns.
make_environment() {
  local extra=$1 target=$ROOT python name
  # pip installs without an extra that it does not know, and JAX would run on the CPU.
  for name in ${extra//,/ }; do
    case $name in
      study | tfds | test | stream | notebook | wandb | mlflow | cuda12 | cuda13 | tpu) ;;
      *) refuse "PRUNEJAX_EXTRA=${PRUNEJAX_EXTRA-}: choose cuda12, cuda13 or tpu (or none: CPU), with ,stream if you need it" ;;
    esac
  done
  [ -z "$extra" ] || target="${ROOT}[$extra]"
  if environment_is_ready "$extra"; then return 0; fi
  python=$(find_python) || exit $?
  if [ "$DRY_RUN" = yes ]; then
    environment_is_usable || quoted "$python" -m venv "$VENV"
    quoted "$VENV/bin/python" -m pip install --editable "$target"
    return 0
  fi
  (
    if command -v flock >/dev/null; then flock 9 2>/dev/null || true; fi
    if environment_is_ready "$extra"; then exit 0; fi
    if ! environment_is_usable; then
      say "making $VENV with $python"
      rm -rf "$VENV"
      { mkdir -p "$VENV" && touch "$VENV/made-by-prunejax" && "$python" -m venv "$VENV"; } || {
        say "cannot make $VENV (Debian, Ubuntu: apt-get install python3-venv; or pass --python)"
        exit 1
      }
    fi
    say "installing prunejax${extra:+ with extra $extra} into $VENV (once; a minute or two)"
    mkdir -p "$VENV/prunejax-installed"
    rm -f "$VENV/prunejax-installed/${extra:-base}"
    touch "$VENV/prunejax-installed/cut-off"
    status=0
    PIP_USER=0 "$VENV/bin/python" -m pip install -qq --disable-pip-version-check \
      --editable "$target" || status=$?
    rm -f "$VENV/prunejax-installed/cut-off"
    if [ "$status" -ne 0 ]; then
      say "the installation failed; the next start tries it again"
      exit 1
    fi
    stamp >"$VENV/prunejax-installed/${extra:-base}"
  ) 9<"$ROOT" || exit $?
}
