# shellcheck shell=bash
# Inside a job: runs prunejax as a step and queues the job again when it asks for it.

REQUEUE_CODE=75

# The id of the last task of an array is also the id of the whole array: name the task.
JOB=$SLURM_JOB_ID
if [ -n "${SLURM_ARRAY_TASK_ID-}" ]; then JOB=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi

# run_step SRUN_OPTIONS -- FLAGS: never returns.
run_step() {
  local options=() code=0
  while [ "$1" != -- ]; do
    options+=("$1")
    shift
  done
  shift
  local command=("$PRUNEJAX_VENV/bin/python" -m prunejax.main)
  # A string on purpose: a stand-in for tests, or "apptainer exec image python -m prunejax.main".
  # shellcheck disable=SC2206
  if [ -n "${PRUNEJAX_COMMAND-}" ]; then command=($PRUNEJAX_COMMAND); fi
  # SLURM signals the steps at the time limit, and the shell, too, on preemption: the shell outlives
  # the step, so that it can queue the job again.
  trap ':' TERM
  # srun does not inherit this from sbatch since SLURM 22.05.
  [ -z "${SLURM_CPUS_PER_TASK-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
  echo "job $JOB, start $((${SLURM_RESTART_COUNT:-0} + 1)), $(date '+%F %T'): ${command[*]} $*"
  srun ${options[@]+"${options[@]}"} "${command[@]}" "$@" &
  # A shell runs its trap only between commands, so it waits for srun in the background.
  local step=$!
  while :; do
    code=0
    wait "$step" || code=$?
    kill -0 "$step" 2>/dev/null || break
  done
  if [ "$code" -eq "$REQUEUE_CODE" ]; then requeue; fi
  echo "job $JOB ended with code $code"
  exit "$code"
}

# Back to the queue, unless the job was cancelled.
requeue() {
  local state
  state=$(scontrol show job "$JOB" --oneliner | sed 's/.* JobState=\([A-Z_]*\).*/\1/')
  if [ "$state" != RUNNING ]; then
    echo "job $JOB is $state: not queued again"
    return
  fi
  echo "job $JOB was interrupted and has saved: queued again"
  if scontrol requeue "$JOB"; then
    sleep 60 # SLURM ends this script
    exit "$REQUEUE_CODE"
  fi
}
