# shellcheck shell=bash
# A SLURM for tests: start_cluster, stop_cluster. Two nodes, both this machine, under the two names
# that lead to it. Needs no root and touches nothing outside its directory; made for the packages
# slurm-wlm and munge of Debian and Ubuntu.

DAEMONS=()

# Says why there can be no cluster here; prints nothing if there can be one.
why_no_cluster() {
  local program
  for program in munged slurmctld slurmd sbatch srun scontrol squeue scancel; do
    if ! PATH=$PATH:/usr/sbin command -v "$program" >/dev/null; then
      echo "$program is not installed (packages slurm-wlm and munge)"
      return
    fi
  done
  if [ "$(hostname -s)" = localhost ]; then echo "this machine has no name but localhost"; fi
}

free_port() {
  python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# start_cluster DIR: returns when the nodes are idle; exports SLURM_CONF for all commands.
start_cluster() {
  local dir=$1 host user node
  PATH=$PATH:/usr/sbin
  host=$(hostname -s)
  user=$(id -un)
  mkdir -p "$dir"/{munge,state,spool-"$host",spool-localhost}
  chmod 700 "$dir/munge"
  head -c 128 /dev/urandom >"$dir/munge/key"
  chmod 600 "$dir/munge/key"
  # --force: the directory may be under /tmp, which anybody may write to.
  munged --foreground --force --socket="$dir/munge/socket" --key-file="$dir/munge/key" \
    --pid-file="$dir/munge/pid" --seed-file="$dir/munge/seed" --log-file="$dir/munge/log" \
    >"$dir/munge/out" 2>&1 &
  DAEMONS+=($!)
  cat >"$dir/slurm.conf" <<EOF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
# The default lets a job that is queued again wait two minutes, the life of a credential.
AuthInfo=socket=$dir/munge/socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2
ReturnToService=2
MpiDefault=none
KillWait=10
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd-%n.log
NodeName=$host NodeHostname=$host NodeAddr=127.0.0.1 Port=$(free_port) CPUs=1 RealMemory=1000
NodeName=localhost NodeHostname=$host NodeAddr=127.0.0.1 Port=$(free_port) CPUs=1 RealMemory=1000
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
  export SLURM_CONF=$dir/slurm.conf
  wait_until 20 test -S "$dir/munge/socket"
  slurmctld -D -f "$SLURM_CONF" >"$dir/slurmctld.out" 2>&1 &
  DAEMONS+=($!)
  for node in "$host" localhost; do
    slurmd -D -f "$SLURM_CONF" -N "$node" >"$dir/slurmd-$node.out" 2>&1 &
    DAEMONS+=($!)
  done
  wait_until 60 nodes_are_idle
}

nodes_are_idle() { [ "$(sinfo --noheader --format=%T:%D 2>/dev/null)" = idle:2 ]; }

# wait_until SECONDS COMMAND: polls; fails with a line when the time is up.
wait_until() {
  local limit=$((SECONDS + $1))
  shift
  until "$@"; do
    if [ "$SECONDS" -ge "$limit" ]; then
      echo "gave up waiting for: $*" >&2
      return 1
    fi
    sleep 0.3
  done
}

# Ends the daemons started here, by their process ids, the last one first.
stop_cluster() {
  local i
  scancel --user="$(id -un)" --full 2>/dev/null || true
  for ((i = ${#DAEMONS[@]} - 1; i >= 0; i--)); do
    kill "${DAEMONS[i]}" 2>/dev/null || true
    wait "${DAEMONS[i]}" 2>/dev/null || true
  done
}
