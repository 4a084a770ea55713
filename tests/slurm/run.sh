#!/usr/bin/env bash
# launch/slurm on a real SLURM of two nodes on this machine: array, stop signal, requeue, resume, report, cancel,
# failure, two processes on two nodes that find each other, and a small study that is stopped and resumed.
# Exit code 77: no SLURM here, with the reason.
#
#   bash tests/slurm/run.sh [PYTHON [--without-study]]
#
# PYTHON: has what prunejax needs (default: python3). The study takes a minute or two.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
root=$(cd "$here/../.." && pwd -P)
python=${1:-python3}
# shellcheck source=tests/slurm/cluster.sh
source "$here/cluster.sh"

reason=$(why_no_cluster)
if [ -n "$reason" ]; then
  echo "skipped: $reason"
  exit 77
fi

work=$(mktemp -d)
finish() {
  local code=$?
  stop_cluster
  if [ "$code" -ne 0 ]; then tail -n 30 "$work"/*/logs/*.log "$work"/cluster/*.log >&2 || true; fi
  rm -rf "$work"
  exit "$code"
}
trap finish EXIT
trap 'exit 143' TERM INT
start_cluster "$work/cluster"

fail() {
  echo "FAILED: $*" >&2
  exit 1
}
expect() { # expect TEXT FILE: the file says so
  grep -q -- "$1" "$2" || fail "no '$1' in $2"
}
submit() { bash "$root/launch/slurm/submit.sh" --config=configs/digits.py --workdir="$1" "${@:2}" 2>&1; }
id_in() { sed -n "s/^$1 \([0-9]*\).*/\1/p"; }
state() { scontrol show job "$1" --oneliner | sed -n '1s/.* JobState=\([A-Z_]*\).*/\1/p'; }
is_state() { [ "$(state "$1")" = "$2" ]; }
all_done() { [ -z "$(squeue --noheader)" ]; }
lines() { [ "$(grep -c . "$1" 2>/dev/null)" = "$2" ]; }

# A stand-in for prunejax.main: shard 2 works until it is told to stop, saves, and finishes when it
# is started again in the same workdir.
cat >"$work/stub" <<'EOF'
#!/usr/bin/env bash
for argument in "$@"; do
  case $argument in --shard=*) shard=${argument#*=} ;; --workdir=*) workdir=${argument#*=} ;; esac
done
file=$workdir/${shard%/*}
echo "start $*" >>"$file"
case $shard in
  1/*) exit "${STUB_CODE:-0}" ;;
  *) [ ! -e "$file.saved" ] || exit 0 ;;
esac
trap 'touch "$file.saved"; exit 75' TERM
while :; do sleep 0.1; done
EOF
chmod +x "$work/stub"
export PRUNEJAX_COMMAND=$work/stub PRUNEJAX_REPORT_COMMAND="touch $work/report-was-written"

# Two shards; the second is told to stop as at a time limit, is queued again and resumes.
array=$(submit "$work/a" --shards=2 | id_in array)
wait_until 30 lines "$work/a/2" 1
wait_until 30 is_state "${array}_0" COMPLETED
scancel --signal=TERM "${array}_1"
wait_until 90 all_done
lines "$work/a/1" 1 || fail "shard 1 must run once"
lines "$work/a/2" 2 || fail "shard 2 must run twice"
expect "--shard=2/2" "$work/a/2"
expect "was interrupted and has saved: queued again" "$work/a/logs/slurm-${array}_1.log"
expect "start 2," "$work/a/logs/slurm-${array}_1.log"
[ -e "$work/report-was-written" ] || fail "the report must follow the last shard"
echo "ok: array, stop signal, requeue, resume, report"

# A failed shard: no requeue, and no report of half a study.
rm "$work/report-was-written"
array=$(STUB_CODE=1 submit "$work/b" --shards=1 | id_in array)
wait_until 60 all_done
lines "$work/b/1" 1 || fail "a failed shard must not run again"
[ ! -e "$work/report-was-written" ] || fail "no report without all shards"
echo "ok: failure"

# A cancelled job stays cancelled.
array=$(submit "$work/c" --shards=2 --array=1 | id_in array)
wait_until 30 lines "$work/c/2" 1
scancel "$array"
wait_until 60 all_done
sleep 1
wait_until 10 all_done
lines "$work/c/2" 1 || fail "a cancelled job must not run again"
is_state "${array}_1" CANCELLED || fail "the job is $(state "${array}_1"), not CANCELLED"
echo "ok: cancel"

# Two nodes find each other through SLURM's variables.
export PYTHONPATH=$root
export PRUNEJAX_COMMAND="$python $here/sum_over_processes.py"
job=$(submit "$work/d" --nodes=2 | id_in job)
wait_until 120 all_done
expect "process 0 of 2: sum 3.0" "$work/d/logs/slurm-$job.log"
expect "process 1 of 2: sum 3.0" "$work/d/logs/slurm-$job.log"
is_state "$job" COMPLETED || fail "the job is $(state "$job")"
echo "ok: several nodes"

if [ "${2-}" = --without-study ]; then exit 0; fi

# The default study, small: one shard is stopped while it trains; the report merges both.
export PRUNEJAX_COMMAND="$python -m prunejax.main"
export PRUNEJAX_REPORT_COMMAND="$python -m prunejax.report"
array=$(submit "$work/e" --config=configs/digits.py:quick --shards=2 --config.seeds=1 \
  --config.epochs=60 --config.population.layout=sequential | id_in array)
log=$work/e/logs/slurm-${array}_1.log
# Training begins right after this line and takes seconds.
wait_until 300 grep -qs "layout: sequential" "$log"
scancel --signal=TERM "${array}_1"
wait_until 400 all_done
expect "interrupted.*; the same command continues" "$log"
expect "start 2," "$log"
[ -s "$work/e/report.html" ] || fail "no report of both shards"
runs=$(cat "$work"/e/shards/*/runs.csv | grep -vc '^run,')
[ "$runs" = 5 ] || fail "$runs runs in the shards, not 5"
echo "ok: study"
