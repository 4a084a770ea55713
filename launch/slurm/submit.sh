#!/usr/bin/env bash
# Submits a study to SLURM, from a login node that shares its file system with the compute nodes.
#
#   bash launch/slurm/submit.sh --shards=8 --config=FILE --workdir=DIR [options]
#       one job per shard of the study (an array), then a job that writes the report of all
#   bash launch/slurm/submit.sh --nodes=4 --config=FILE --workdir=DIR [options]
#       one study over several nodes
#
#   --shards=N            split the members of the study over N jobs
#   --array=LIST          with --shards: only these tasks, 0 to N-1, for example 3,5-7
#   --nodes=N             one program over N nodes
#   --tasks-per-node=T    with --nodes: processes per node, one GPU each (default 1: all its GPUs)
#   --sbatch=OPTION       an option for sbatch, any number of times: --sbatch=--time=8:00:00
#   --config.FIELD=VALUE  an override; other flags of prunejax.main go after "--"
#   --dry-run             print the commands and stop
#   --help                this text
#
# Logs go to WORKDIR/logs. A job that is told to stop (time limit, preemption) saves, ends with
# code 75 and is queued again; the same submission continues a study that was cut off otherwise.
# Environment: PRUNEJAX_EXTRA=cuda12|cuda13 chooses the accelerator build of JAX.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

SHARDS='' ARRAY='' NODES='' TASKS='' SBATCH=()
own_option() {
  case $1 in
    --shards=*) SHARDS=${1#*=} && number --shards "$SHARDS" 4000000 ;;
    --array=?*) ARRAY=${1#*=} ;;
    --nodes=*) NODES=${1#*=} && number --nodes "$NODES" ;;
    --tasks-per-node=*) TASKS=${1#*=} && number --tasks-per-node "$TASKS" ;;
    --sbatch=-*) SBATCH+=("${1#*=}") ;;
    *) return 1 ;;
  esac
}
cluster_arguments "$@"
if [ -n "$SHARDS" ] && [ -n "$NODES" ]; then refuse "--shards and --nodes exclude each other"; fi
if [ -z "$SHARDS$NODES" ]; then refuse "give --shards=N (an array of jobs) or --nodes=N (one job)"; fi
if [ -n "$ARRAY" ] && [ -z "$SHARDS" ]; then refuse "--array=$ARRAY needs --shards=N"; fi
item='[0-9]+(-[0-9]+(:[1-9][0-9]*)?)?'
if [ -n "$ARRAY" ] && ! [[ $ARRAY =~ ^$item(,$item)*(%[1-9][0-9]*)?$ ]]; then
  refuse "--array=$ARRAY: give tasks from 0 to $((SHARDS - 1)), for example 0,2-3"
fi
tasks=${ARRAY%%%*} # without "%LIMIT"
for task in ${tasks//[,-]/ }; do
  task=${task%%:*} # without ":STEP"
  case $task in
    '' | *[!0-9]* | ????????*) task=$SHARDS ;;
  esac
  [ "$task" -lt "$SHARDS" ] || refuse "--array=$ARRAY: give tasks from 0 to $((SHARDS - 1)), for example 0,2-3"
done
if [ -n "$TASKS" ] && [ -z "$NODES" ]; then refuse "--tasks-per-node=$TASKS needs --nodes=N"; fi
if [ "$DRY_RUN" = no ] && ! command -v sbatch >/dev/null; then
  refuse "no sbatch on this machine: run it on a login node, or add --dry-run"
fi
if [ "$DRY_RUN" = no ] && [ -n "$SHARDS" ] && command -v scontrol >/dev/null; then
  most=$(scontrol show config 2>/dev/null | awk '$1 == "MaxArraySize" { print $3 }')
  case $most in
    '' | *[!0-9]*) ;;
    *) [ "$SHARDS" -le "$most" ] || refuse "--shards=$SHARDS: this cluster's arrays have at most $most jobs (MaxArraySize)" ;;
  esac
fi

[ -n "${PRUNEJAX_COMMAND-}" ] || make_environment "$(study_extra)"
here=$ROOT/launch/slurm
logs=$WORKDIR/logs
pattern=${logs//%/%%}/slurm # sbatch puts numbers in for "%j" and its like, also in a directory's name
run mkdir -p "$logs"

# submit COMMAND: prints the job's id.
exec 3>&1
[ "$DRY_RUN" = no ] || say "JOB: the id that sbatch prints"
submit() {
  if [ "$DRY_RUN" = yes ]; then
    quoted "$@" >&3
    echo JOB
  else
    "$@"
  fi
}
# The jobs' environment: nothing secret on a command line.
PRUNEJAX_SECRET=${PRUNEJAX_SECRET:-$(new_secret)}
export PRUNEJAX_SECRET
common=(env "PRUNEJAX_ROOT=$ROOT" "PRUNEJAX_VENV=$VENV")
flags=("--config=$CONFIG" "--workdir=$WORKDIR" ${ARGS[@]+"${ARGS[@]}"})
options=(--parsable ${SBATCH[@]+"${SBATCH[@]}"})

if [ -n "$NODES" ]; then
  job=$(submit "${common[@]}" sbatch "${options[@]}" "--nodes=$NODES" \
    "--ntasks-per-node=${TASKS:-1}" "--output=$pattern-%j.log" \
    "$here/study_nodes.sbatch" "${flags[@]}")
  say "job ${job%%;*}: $NODES nodes; log $logs/slurm-${job%%;*}.log"
  exit 0
fi
job=$(submit "${common[@]}" "PRUNEJAX_SHARDS=$SHARDS" sbatch "${options[@]}" \
  "--array=${ARRAY:-0-$((SHARDS - 1))}" "--output=$pattern-%A_%a.log" \
  "$here/study_array.sbatch" "${flags[@]}")
job=${job%%;*}
# The report needs no accelerator, but the same account and queue.
here_too=()
for option in ${SBATCH[@]+"${SBATCH[@]}"}; do
  case $option in
    -[ApqMt]* | --account=* | --partition=* | --qos=* | --clusters=* | --reservation=* | --time=*)
      here_too+=("$option")
      ;;
  esac
done
say "array $job: $SHARDS shards; logs in $logs"
report=$(submit "${common[@]}" sbatch --parsable ${here_too[@]+"${here_too[@]}"} \
  "--dependency=afterok:$job" "--kill-on-invalid-dep=yes" \
  "--output=$pattern-report-%j.log" "$here/report.sbatch" "$WORKDIR") || {
  say "the report was not submitted: when the shards are done, run $(quoted \
    "$VENV/bin/python" -m prunejax.report "$WORKDIR")"
  exit 1
}
say "then report job ${report%%;*}"
