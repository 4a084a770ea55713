#!/usr/bin/env bash
# Runs what needs a GPU, stage by stage; every measured number is written at once.
#
#   bash benchmarks/gpu.sh --out=runs/gpu --data=DIR --wheels=DIR
#   bash benchmarks/gpu.sh --cpu                         # every stage in its smallest form
#
# Stages, in this order (or name some: --stage=smoke,tests; the letters do as well):
#   a  smoke       the default study, stopped and continued: the same bytes? what determinism costs
#   b  tests       pytest -m gpu
#   c  throughput  VGG11, ResNet18, MLP against PyTorch and the released loop; convolutions
#   d  projection  figure 2 in hours
#   e  memory      predicted against measured peak
#   f  figure2     a real piece of figure 2: VGG11 on CIFAR-10 (needs --data)
#
# A call ends after --minutes; the same command continues: what OUT holds is not measured again,
# what failed is tried again. OUT gets DATE-STAGE.json for every stage, DATE-summary.json, logs/.
#
#   --stage=NAMES     these stages only
#   --out=DIR         results (default: runs/gpu, with --cpu runs/gpu-cpu)
#   --data=DIR        prepared TFDS sets, with cifar10
#   --wheels=DIR      wheels of packages that are missing, installed into OUT/packages without a network
#   --minutes=N       of this call (default 9: it fits into ten with a start and a copy of the results)
#   --figure-minutes=N  of stage figure2 in all calls together (default 15)
#   --python=PYTHON   has JAX for this GPU (default: python3); prunejax itself need not be installed
#   --torch-python=PYTHON  has PyTorch (default: the same)
#   --bundle=FILE     also packs the results, without checkpoints, into FILE (.tar.gz)
#   --cpu             the smallest form of each stage, on the CPU
#   --dry-run         print the commands and stop
#   --help            this text
#
# Exit code: 0 all done, 1 something failed, 2 bad request, 75 out of time (the same command continues).
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../launch/common.sh"

ALL=(smoke tests throughput projection memory figure2)
MARGIN=50 # seconds at the end of a call in which a study saves what it has

OUT='' DATA='' WHEELS='' MINUTES=9 FIGURE=15 PYTHON=python3 TORCH='' BUNDLE='' CPU=no
stages=("${ALL[@]}")

choose() { # NAMES: sets stages
  local name known
  stages=()
  for name in ${1//,/ }; do
    case $name in
      a) name=smoke ;; b) name=tests ;; c) name=throughput ;;
      d) name=projection ;; e) name=memory ;; f) name=figure2 ;;
    esac
    known=no
    for stage in "${ALL[@]}"; do [ "$stage" != "$name" ] || known=yes; done
    [ "$known" = yes ] || refuse "--stage=$1: no stage '$name'; there are: ${ALL[*]}"
    stages+=("$name")
  done
  [ ${#stages[@]} -gt 0 ] || refuse "--stage=: name one of: ${ALL[*]}"
}

for argument in "$@"; do
  case $argument in
    --help | -h) show_help ;;
    --dry-run) DRY_RUN=yes ;;
    --cpu) CPU=yes ;;
    --stage=*) choose "${argument#*=}" ;;
    --out=?*) OUT=$(absolute "${argument#*=}") ;;
    --data=?*) DATA=$(absolute "${argument#*=}") ;;
    --wheels=?*) WHEELS=$(absolute "${argument#*=}") ;;
    --minutes=*) MINUTES=${argument#*=} && number --minutes "$MINUTES" ;;
    --figure-minutes=*) FIGURE=${argument#*=} && number --figure-minutes "$FIGURE" ;;
    --python=?*) PYTHON=${argument#*=} ;;
    --torch-python=?*) TORCH=${argument#*=} ;;
    --bundle=?*) BUNDLE=$(absolute "${argument#*=}") ;;
    *) refuse "unknown option $argument (see --help)" ;;
  esac
done
if [ "$CPU" = yes ]; then OUT=${OUT:-$ROOT/runs/gpu-cpu}; else OUT=${OUT:-$ROOT/runs/gpu}; fi
[ -z "$DATA" ] || [ -d "$DATA/cifar10" ] || refuse "--data=$DATA: there is no folder cifar10 in it"
command -v "$PYTHON" >/dev/null || refuse "--python=$PYTHON: no such program"

wheels=()
if [ -n "$WHEELS" ]; then
  for file in "$WHEELS"/*.whl; do [ ! -e "$file" ] || wheels+=("$file"); done
  [ ${#wheels[@]} -gt 0 ] || refuse "--wheels=$WHEELS: there are no .whl files in it"
fi

export PYTHONPATH=$ROOT:$OUT/packages${PYTHONPATH:+:$PYTHONPATH}
export MPLBACKEND=agg
if [ "$CPU" = yes ]; then
  export JAX_PLATFORMS=cpu
  # Nearly all of the time is compilation.
  export XLA_FLAGS="--xla_backend_optimization_level=1 ${XLA_FLAGS-}"
  export JAX_COMPILATION_CACHE_DIR=$OUT/xla JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
else
  export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu} # the CPU too: exact results to compare with
fi

if [ ${#wheels[@]} -gt 0 ] && [ ! -e "$OUT/packages/complete" ]; then
  run "$PYTHON" -m pip install --quiet --no-index --no-deps --upgrade --target "$OUT/packages" "${wheels[@]}"
  run touch "$OUT/packages/complete"
fi

flag=()
[ "$CPU" = no ] || flag=(--cpu)
run "$PYTHON" "$ROOT/benchmarks/gpu_stage.py" device "$OUT" ${flag[@]+"${flag[@]}"} ${DATA:+--data}

for stage in "${stages[@]}"; do
  left=$((60 * MINUTES - SECONDS - MARGIN))
  [ "$DRY_RUN" = no ] || left=$((60 * MINUTES - MARGIN))
  command=("$PYTHON" "$ROOT/benchmarks/gpu_$stage.py" "--out=$OUT" "--seconds=$left"
    "--torch-python=${TORCH:-$PYTHON}" "--figure-minutes=$FIGURE")
  [ -z "$DATA" ] || command+=("--data=$DATA")
  if [ "$DRY_RUN" = yes ]; then
    quoted "${command[@]}" ${flag[@]+"${flag[@]}"}
    continue
  fi
  if [ "$left" -lt 20 ]; then
    say "$stage: no time left in this call; the same command continues"
    break
  fi
  say "== $stage ($left s left)"
  "${command[@]}" ${flag[@]+"${flag[@]}"} || say "$stage ended with code $?"
done

code=0
run "$PYTHON" "$ROOT/benchmarks/gpu_stage.py" summary "$OUT" "${stages[@]}" || code=$?
if [ -n "$BUNDLE" ]; then
  run tar -czf "$BUNDLE" --exclude=checkpoints --exclude=packages --exclude=xla --exclude=pytest \
    --exclude=tb -C "$OUT" .
fi
exit "$code"
