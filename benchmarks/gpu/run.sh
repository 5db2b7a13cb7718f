#!/usr/bin/env bash
# Everything that a GPU must prove, on a machine without network: installs the packed parts into a folder of its own and
# runs the steps, each within its own time, each writing JSON as it goes. What was done survives a cut.
#
#   benchmarks/gpu/run.sh [--dry-run] [--only "correct speed"] PARTS OUT
#
# PARTS: what pack.sh made; OUT: where the JSON goes. --dry-run: tiny models on a CPU. PYTHON: the interpreter that has
# torch. LEDPO_SECONDS_<STEP> sets a step's time limit.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dry= only="correct speed"
while [[ ${1:-} == --* ]]; do
  case $1 in
    --dry-run) dry=--dry-run ;;
    --only) only=$2; shift ;;
    *) echo "unknown option $1" >&2; exit 2 ;;
  esac
  shift
done
[[ $# == 2 ]] || { sed -n 2,10p "$0" >&2; exit 2; }
parts=$1 out=$2 python=${PYTHON:-python3}
mkdir -p "$out"; out=$(cd "$out" && pwd)
site=${LEDPO_SITE:-$(mktemp -d)/site}
if [[ ! -d $site ]]; then
  "$python" "$here/parts.py" join "$parts" "$site.wheels" || exit 1
  if [[ -n $dry ]]; then rm "$site.wheels"/liger_kernel-*; fi  # triton stops where there is no GPU
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
    --target "$site" "$site.wheels"/*.whl || exit 1
fi
export PYTHONPATH=$site PYTHONUNBUFFERED=1
commit=${LEDPO_COMMIT:-$(git -C "$here" rev-parse --short HEAD 2>/dev/null || echo unknown)}
status=0
for step in $only; do
  limit=LEDPO_SECONDS_${step^^}
  case $step in correct) seconds=150 ;; speed) seconds=300 ;; *) seconds=120 ;; esac
  seconds=${!limit:-$seconds}
  echo "== $step (at most $seconds s)"
  timeout -k 5 "$seconds" "$python" "$here/step.py" \
    "$step" --out "$out" --commit "$commit" $dry >"$out/$step.log" 2>&1 || { echo "  ended with status $?"; status=1; }
  grep -h '^{' "$out/$step.log" | cut -c 1-300 | tail -n 60
done
exit $status
