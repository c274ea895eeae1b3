#!/usr/bin/env bash
# NeMo Curator's image stages with what they import, for a host that has no package registry.
#
#   usage: bundle.sh OUT_DIR [PYTHON_VERSION, default 3.12]
#
# Leaves OUT_DIR/nemo.tar.xz (about 6 MiB). Unpack it and name the folder in BENCH_NEMO_PATH: only the process
# that runs this peer sees it. torch, torchvision, DALI, pandas, pyarrow and PyYAML must be there already. Ray
# and Cosmos-Xenna are left out: the stages are driven in one process (see nemo_curator.py).
set -euo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd)
version=${2:-3.12}
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m pip download -q --no-deps --only-binary=:all: --python-version "$version" \
  --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
  --platform manylinux2014_x86_64 -d "$work/wheels" \
  nemo-curator==1.4.0 transformers==4.57.6 tokenizers==0.22.1 'huggingface-hub==0.36.*' \
  loguru attrs requests urllib3 certifi charset-normalizer idna regex safetensors fsspec
mkdir "$work/site"
for wheel in "$work"/wheels/*.whl; do unzip -q -o "$wheel" -d "$work/site"; done
# Of the models only CLIP runs here; what the others are called is enough to import the library.
find "$work/site/transformers/models" -mindepth 2 -type f ! -path '*/auto/*' ! -path '*/clip/*' \
  ! -name __init__.py ! -name 'configuration_*' -delete
tar cJf "$out/nemo.tar.xz" -C "$work/site" --owner=0 --group=0 .
ls -l "$out/nemo.tar.xz"
