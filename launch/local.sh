#!/usr/bin/env bash
# Runs a study on this machine.
#
#   bash launch/local.sh --config=configs/digits.py --workdir=runs/digits
#
# Makes .venv and installs prunejax when needed (Python 3.11 or later is all it takes), then runs
# "python -m prunejax.main" with all other arguments. Paths are relative to the current directory;
# a config that is not there is looked up in the repository.
#
#   --processes=N    N processes on this machine as one program, one accelerator each
#   --python=PYTHON  the Python that .venv is made with
#   --dry-run        print the commands and stop
#   --help           this text
#
# Environment: PRUNEJAX_EXTRA=cuda12|cuda13|tpu chooses the accelerator build of JAX (default: CPU),
# with ,stream for streamed sets, ,wandb or ,mlflow for trackers;
# PRUNEJAX_VENV=DIR uses another place than .venv.
# Exit code: that of prunejax.main (see launch/README.md), 2 for a bad option.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

PROCESSES=1
rest=()
for argument in "$@"; do
  case $argument in
    --processes=*) PROCESSES=${argument#*=} && number --processes "$PROCESSES" 1024 ;;
    --python=*) PYTHON=${argument#*=} ;;
    --processes | --python) refuse "write $argument=VALUE" ;;
    --dry-run) DRY_RUN=yes ;;
    --help | -h) show_help ;;
    *) rest+=("$argument") ;;
  esac
done
resolve_config ${rest[@]+"${rest[@]}"}
main=("$VENV/bin/python" -m prunejax.main ${ARGS[@]+"${ARGS[@]}"})

make_environment "$(study_extra)"

if [ "$PROCESSES" -eq 1 ]; then
  if [ "$DRY_RUN" = yes ]; then
    quoted "${main[@]}"
    exit 0
  fi
  exec "${main[@]}"
fi

PRUNEJAX_SECRET=${PRUNEJAX_SECRET:-$(new_secret)}
export PRUNEJAX_SECRET
port=PORT
if [ "$DRY_RUN" = no ]; then
  port=$("$VENV/bin/python" -c \
    'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
fi

pids=()
stopping=no
stop() { # SIGNAL: passes it on to every process that still runs
  stopping=yes
  local pid
  for pid in ${pids[@]+"${pids[@]}"}; do kill -"$1" "$pid" 2>/dev/null || true; done
}
trap 'stop TERM' TERM HUP
trap 'stop INT' INT
set -m # own process groups: Ctrl-C reaches the processes once, through the trap

for ((i = 0; i < PROCESSES; i++)); do
  command=("${main[@]}" "--coordinator=127.0.0.1:$port" "--process_id=$i" "--process_count=$PROCESSES")
  if [ "$DRY_RUN" = yes ]; then
    quoted env "JAX_LOCAL_DEVICE_IDS=$i" "${command[@]}"
  else
    JAX_LOCAL_DEVICE_IDS=$i PRUNEJAX_PARENT=$$ "${command[@]}" &
    pids+=($!)
  fi
done
if [ "$DRY_RUN" = yes ]; then
  say "PORT: a free port of this machine, found at the start"
  exit 0
fi

# The first process that fails decides the exit code and ends the others.
code=0
running=("${pids[@]}")
while [ ${#running[@]} -gt 0 ]; do
  still=()
  for pid in "${running[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      still+=("$pid")
      continue
    fi
    status=0
    wait "$pid" || status=$?
    if [ "$status" -ne 0 ] && [ "$code" -eq 0 ]; then
      code=$status
      if [ "$stopping" = no ]; then
        say "local.sh: a process ended with code $code; ending the others"
        stop TERM
      fi
      deadline=$((SECONDS + 20))
    fi
  done
  running=(${still[@]+"${still[@]}"})
  if [ "$code" -ne 0 ] && [ "$SECONDS" -gt "$deadline" ]; then stop KILL; fi
  sleep 0.2
done
exit "$code"
