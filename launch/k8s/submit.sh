#!/usr/bin/env bash
# Submits a study to Kubernetes as a JobSet, filled in from jobset-gpu.yaml or jobset-tpu.yaml.
# The cluster needs the JobSet controller and a ReadWriteMany volume claim for the runs.
#
#   bash launch/k8s/submit.sh gpu --image=IMAGE --config=configs/X.py --workdir=/runs/X [options]
#   bash launch/k8s/submit.sh tpu --image=IMAGE --config=configs/X.py --workdir=/runs/X [options]
#
#   --image=IMAGE         built from launch/k8s/Dockerfile
#   --name=NAME           name of the JobSet (default prunejax)
#   --pods=N              pods, one process each (default: gpu 2, tpu 4 as for topology 4x4)
#   --gpus=N              GPUs of a pod (default 1)
#   --accelerator=TYPE    TPU type as GKE names it (default tpu-v5-lite-podslice)
#   --topology=AxB        TPU topology (default 4x4)
#   --chips=N             TPU chips of a pod (default 4)
#   --claim=NAME          volume claim mounted at /runs (default prunejax-runs)
#   --config.FIELD=VALUE  an override; other flags of prunejax.main go after "--"
#   --dry-run             print the manifest and the command and stop
#   --help                this text
#
# The config is a path inside the image, which holds configs/; the workdir is one under /runs.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

case ${1-} in
  gpu | tpu) KIND=$1 && shift ;;
  --help | -h) show_help ;;
  *) refuse "say gpu or tpu first (see --help)" ;;
esac
IMAGE='' NAME=prunejax PODS=2 GPUS=1 TYPE=tpu-v5-lite-podslice TOPOLOGY=4x4 CHIPS=4
CLAIM=prunejax-runs
[ "$KIND" = gpu ] || PODS=4
own_option() {
  case $KIND$1 in
    *--image=?*) IMAGE=${1#*=} ;;
    *--name=?*) NAME=${1#*=} ;;
    *--pods=*) PODS=${1#*=} && number --pods "$PODS" ;;
    *--claim=?*) CLAIM=${1#*=} ;;
    gpu--gpus=*) GPUS=${1#*=} && number --gpus "$GPUS" ;;
    tpu--accelerator=?*) TYPE=${1#*=} ;;
    tpu--topology=?*) TOPOLOGY=${1#*=} ;;
    tpu--chips=*) CHIPS=${1#*=} && number --chips "$CHIPS" ;;
    *) return 1 ;;
  esac
}
cluster_arguments "$@"
[ -n "$IMAGE" ] || refuse "--image=IMAGE is missing"
# Pods are called NAME-workers-0-INDEX-SUFFIX, and every such name is a DNS label.
most=$((63 - 11 - ${#PODS} - 6))
cloud_name --name "$NAME" "$most"
case $CLAIM in
  [!a-z0-9]* | *[!a-z0-9.-]* | *[.-]) refuse "--claim=$CLAIM: lower-case letters, digits and inner hyphens and dots" ;;
esac
[ ${#CLAIM} -le 253 ] || refuse "--claim=$CLAIM: ${#CLAIM} characters, 253 at most"
if [ "$KIND" = tpu ]; then
  case $TOPOLOGY in
    *[!0-9x]* | x* | *x | *xx* | 0* | *x0* | *[0-9][0-9][0-9][0-9]* | *x*x*x*) refuse "--topology=$TOPOLOGY: write it like 4x4 or 2x2x4" ;;
  esac
  [ $((${TOPOLOGY//x/*})) -eq $((PODS * CHIPS)) ] ||
    refuse "--topology=$TOPOLOGY has $((${TOPOLOGY//x/*})) chips, --pods=$PODS of --chips=$CHIPS have $((PODS * CHIPS))"
fi
case $WORKDIR/ in
  */../* | */./*) refuse "--workdir=$WORKDIR: write the path without . and .." ;;
  /runs//*) refuse "--workdir=$WORKDIR is not under /runs: name a directory in it" ;;
  /runs/*/) ;;
  *) refuse "--workdir=$WORKDIR is not under /runs, where the volume is mounted" ;;
esac
config=${CONFIG#"$ROOT"/}
case $config in
  */../* | */./*) refuse "--config=$CONFIG: write the path without . and .." ;;
  configs/*) ;;
  *) refuse "--config=$CONFIG is not under configs/, so the image does not have it" ;;
esac

# A YAML string. Values reach awk through the environment, which leaves them as they are.
text() { printf "'%s'" "${1//\'/$TWO_QUOTES}"; }
TWO_QUOTES="''"
# The same as an argument of a container, where "$(NAME)" is a variable and "$$" one dollar sign.
argument() { text "${1//$DOLLAR/$DOLLAR$DOLLAR}"; }
DOLLAR='$'
flags=''
for flag in ${ARGS[@]+"${ARGS[@]}"}; do flags+="- $(argument "$flag")"$'\n'; done
manifest() {
  # shellcheck disable=SC2016
  env set_name="$NAME" set_pods="$PODS" set_image="$(text "$IMAGE")" set_flags="$flags" \
    set_config="$(argument "--config=$config")" set_workdir="$(argument "--workdir=$WORKDIR")" \
    set_coordinator="$NAME-workers-0-0.$NAME:55527" set_count="'$PODS'" set_secret="$(new_secret)" set_gpus="$GPUS" \
    set_accelerator="$(text "$TYPE")" set_topology="$(text "$TOPOLOGY")" set_chips="$CHIPS" \
    set_claim="$(text "$CLAIM")" \
    awk '
      match($0, /# set: [a-z]+$/) {
        value = ENVIRON["set_" substr($0, RSTART + 7)]
        if (match($0, /^ *# /)) { # a line of its own: any number of lines
          indent = substr($0, 1, RLENGTH - 2)
          count = split(value, lines, "\n")
          for (i = 1; i < count; i++) print indent lines[i]
        } else {
          match($0, /^ *(- )?([A-Za-z.\/-]+: )?/)
          print substr($0, 1, RLENGTH) value
        }
        next
      }
      !/^#/ { print }
    ' "$ROOT/launch/k8s/jobset-$KIND.yaml"
}

if [ "$DRY_RUN" = yes ]; then
  echo "kubectl create -f - <<'EOF'"
  manifest
  echo EOF
  exit 0
fi
command -v kubectl >/dev/null || refuse "no kubectl on this machine: install it, or add --dry-run"
manifest | kubectl create -f -
