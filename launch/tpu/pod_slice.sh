#!/usr/bin/env bash
# Runs a study on an existing Cloud TPU VM or pod slice: copies the repository to every worker,
# then runs launch/local.sh on all of them as one program. Run it again to continue.
#
#   bash launch/tpu/pod_slice.sh --name=TPU --zone=ZONE --config=configs/X.py --workdir=DIR [options]
#
#   --name=TPU            the TPU VM
#   --zone=ZONE           its zone
#   --project=PROJECT     its project (default: that of gcloud)
#   --setup=COMMAND       runs on every worker first (default: Python 3.11 from Ubuntu's packages
#                         where python3 is older); the place to mount the file system of DIR
#   --config.FIELD=VALUE  an override; other flags of prunejax.main go after "--"
#   --dry-run             print the commands and stop
#   --help                this text
#
# The config is a path inside the repository, DIR a path that is the same file system on every
# worker (Filestore or another NFS). The committed state (HEAD) of the repository is what runs.
# Exit code: that of the study where gcloud passes it on, 2 for a bad option.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

# shellcheck disable=SC2016
SETUP='python3 -c "import sys; assert sys.version_info >= (3, 11)" || sudo apt-get install -y python3.11 python3.11-venv'
NAME='' ZONE='' PROJECT=()
own_option() {
  case $1 in
    --name=?*) NAME=${1#*=} ;;
    --zone=?*) ZONE=${1#*=} ;;
    --project=?*) PROJECT=("$1") ;;
    --setup=?*) SETUP=${1#*=} ;;
    *) return 1 ;;
  esac
}
REMOTE=yes
cluster_arguments "$@"
[ -n "$NAME" ] || refuse "--name=TPU is missing"
cloud_name --name "$NAME" 63
[ -n "$ZONE" ] || refuse "--zone=ZONE is missing"
case $CONFIG in
  "$ROOT"/*) config=${CONFIG#"$ROOT"/} ;;
  *) refuse "--config=$CONFIG is outside the repository, so the workers do not have it" ;;
esac
if [ "$DRY_RUN" = no ] && ! command -v gcloud >/dev/null; then
  refuse "no gcloud on this machine: install it, or add --dry-run"
fi

where=(--worker=all "--zone=$ZONE" ${PROJECT[@]+"${PROJECT[@]}"})
archive=ARCHIVE
if [ "$DRY_RUN" = yes ]; then
  say "ARCHIVE: a new file in a directory of its own, removed at the end"
else
  folder=$(mktemp -d "${TMPDIR:-/tmp}/prunejax.XXXXXXXX")
  trap 'rm -rf "$folder"' EXIT
  archive=$folder/prunejax.tar.gz
fi
study=$(quoted env PRUNEJAX_EXTRA=tpu bash launch/local.sh "--config=$config" \
  "--workdir=$WORKDIR" ${ARGS[@]+"${ARGS[@]}"} --coordinator=auto)
run git -C "$ROOT" archive --format=tar.gz "--output=$archive" HEAD
run gcloud compute tpus tpu-vm scp "$archive" "$NAME:prunejax.tar.gz" "${where[@]}"
run gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --command \
  "{ $SETUP; } && mkdir -p prunejax && tar -xzf prunejax.tar.gz -C prunejax"
code=0
run gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --command "cd prunejax && $study" || code=$?
exit "$code"
