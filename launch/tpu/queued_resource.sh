#!/usr/bin/env bash
# Runs a study on a queued TPU resource and sees it through preemption: creates the resource, waits
# until it is active, runs the study; when the TPU is taken away, deletes what is left, creates it
# again and runs the same command on the same workdir, which continues. Deletes it at the end.
#
#   bash launch/tpu/queued_resource.sh --name=TPU --zone=ZONE --type=v5litepod-16 \
#       --runtime=v2-alpha-tpuv5-lite --config=configs/X.py --workdir=DIR [options]
#
#   --name=TPU            name of the resource and of its TPU VM
#   --zone=ZONE           zone
#   --project=PROJECT     project (default: that of gcloud)
#   --type=TYPE           accelerator type
#   --runtime=VERSION     software version of the TPU VM
#   --spot                a spot TPU: cheaper, and taken away at any time
#   --poll=SECONDS        between two looks at a resource that waits (default 60)
#   --tries=N             how often the resource is created (default 100)
#   --keep                do not delete the resource at the end
#   --setup=COMMAND       as in pod_slice.sh
#   --config.FIELD=VALUE  an override; other flags of prunejax.main go after "--"
#   --dry-run             print the commands of one round and stop
#   --help                this text
#
# Exit code: 0 the study is done, 2 bad request, 1 the study or the creation failed.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

NAME='' ZONE='' TYPE='' RUNTIME='' PROJECT=() SPOT=() SETUP=() POLL=60 TRIES=100 KEEP=no
own_option() {
  case $1 in
    --name=?*) NAME=${1#*=} ;;
    --zone=?*) ZONE=${1#*=} ;;
    --project=?*) PROJECT=("$1") ;;
    --type=?*) TYPE=${1#*=} ;;
    --runtime=?*) RUNTIME=${1#*=} ;;
    --spot) SPOT=("$1") ;;
    --poll=*) POLL=${1#*=} && number --poll "$POLL" ;;
    --tries=*) TRIES=${1#*=} && number --tries "$TRIES" ;;
    --keep) KEEP=yes ;;
    --setup=?*) SETUP=("$1") ;;
    *) return 1 ;;
  esac
}
REMOTE=yes
cluster_arguments "$@"
[ -n "$NAME" ] || refuse "--name=TPU is missing"
cloud_name --name "$NAME" 63
[ -n "$ZONE" ] || refuse "--zone=ZONE is missing"
[ -n "$TYPE" ] || refuse "--type=TYPE is missing, for example v5litepod-16"
[ -n "$RUNTIME" ] || refuse "--runtime=VERSION is missing, for example v2-alpha-tpuv5-lite"
if [ "$DRY_RUN" = no ] && ! command -v gcloud >/dev/null; then
  refuse "no gcloud on this machine: install it, or add --dry-run"
fi

where=("--zone=$ZONE" ${PROJECT[@]+"${PROJECT[@]}"})
queue=(gcloud compute tpus queued-resources)
create() {
  run "${queue[@]}" create "$NAME" "--node-id=$NAME" "${where[@]}" "--accelerator-type=$TYPE" \
    "--runtime-version=$RUNTIME" ${SPOT[@]+"${SPOT[@]}"}
}
delete() { run "${queue[@]}" delete "$NAME" "${where[@]}" --force --quiet; }
state() { # NONE: there is no such resource
  "${queue[@]}" describe "$NAME" "${where[@]}" '--format=value(state.state)' 2>/dev/null || echo NONE
}
study() {
  bash "$ROOT/launch/tpu/pod_slice.sh" "--name=$NAME" "${where[@]}" ${SETUP[@]+"${SETUP[@]}"} \
    "--config=$CONFIG" "--workdir=$WORKDIR" "$@" -- ${ARGS[@]+"${ARGS[@]}"}
}

if [ "$DRY_RUN" = yes ]; then
  create
  quoted "${queue[@]}" describe "$NAME" "${where[@]}" '--format=value(state.state)'
  study --dry-run
  if [ "$KEEP" = no ]; then delete; fi
  exit 0
fi

created=0
failed=0
while :; do
  case $(state) in
    NONE)
      created=$((created + 1))
      [ "$created" -le "$TRIES" ] || { say "created $TRIES times without an end: giving up" && exit 1; }
      say "creating $NAME, time $created"
      create || sleep "$POLL"
      ;;
    ACTIVE)
      code=0
      study || code=$?
      if [ "$code" -eq 0 ] || [ "$code" -eq 2 ]; then break; fi
      # A TPU that was taken away takes a moment to say so.
      sleep "$POLL"
      if [ "$code" -ne 75 ] && [ "$(state)" = ACTIVE ]; then
        failed=$((failed + 1))
        say "the study ended with code $code on a TPU that is still there ($failed of 3)"
        if [ "$failed" -eq 3 ]; then break; fi
      fi
      ;;
    SUSPENDED | FAILED | SUSPENDING)
      say "$NAME is gone: deleting what is left"
      delete || sleep "$POLL"
      ;;
    *) sleep "$POLL" ;;
  esac
done
if [ "$KEEP" = no ]; then delete || say "$NAME could not be deleted: delete it by hand"; fi
if [ "$code" -ne 0 ] && [ "$code" -ne 2 ]; then code=1; fi
exit "$code"
