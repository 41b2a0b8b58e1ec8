#!/usr/bin/env bash
# Goes through check, measure and tune without a GPU, up to their first real result: in a fresh environment
# with the versions of a machine that has one (constraints.txt beside this file), from a copy of the tree
# without .git, and without network after the install. What a GPU would compute nobody learns here.
#
#     benchmarks/gpu/rehearse.sh [FOLDER]      PYTHON=python3.12 chooses the interpreter
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=${1:-build/rehearsal}
for PYTHON in ${PYTHON:-python3.12 "$(pyenv prefix 3.12 2>/dev/null)/bin/python3.12"}; do
  "$PYTHON" -c '' 2>/dev/null && break || PYTHON=
done
[ -n "$PYTHON" ] || { echo "Python 3.12 is needed, and NumPy 2.5 takes no older one: PYTHON=/path/to/python3.12"; exit 1; }
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
echo "== $("$PYTHON" -V) in $folder"
rm -rf "$folder/venv" "$folder/tree" "$folder/out" "$folder/triton"
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q -c "$here/constraints.txt" \
  torch triton numpy safetensors pillow tqdm pytest hypothesis setuptools pybind11 cmake ninja
mkdir -p "$folder/tree"
(cd "$here/../.." && tar c --exclude=./build --exclude=./.git --exclude=./.venv --exclude='*.egg-info' \
  --exclude='*.so' --exclude=__pycache__ .) | tar x -C "$folder/tree"
cd "$folder/tree"
offline=(env)
unshare -rn true 2>/dev/null && offline=(unshare -rn) || echo "== the network stays: unshare is not allowed here"
export TRITON_CACHE_DIR=$folder/triton
for script in check measure tune; do
  echo "== $script ($(date +%T))"
  "${offline[@]}" "$folder/venv/bin/python" "benchmarks/gpu/$script.py" "$folder/out" --rehearse
done
echo "== all went through; what only a GPU can say is left"
