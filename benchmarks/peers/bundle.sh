#!/usr/bin/env bash
# A peer with what it imports, for a host that has no package registry.
#
#   usage: bundle.sh OUT_DIR [nemo | ray | data-juicer, default nemo] [PYTHON_VERSION, default 3.12]
#
# Leaves OUT_DIR/PEER.tar.xz. Unpack it and name the folder in the peer's variable: only the processes that run
# this peer see it.
#
#   nemo         BENCH_NEMO_PATH         NeMo Curator's image stages (about 6 MiB)
#   ray          BENCH_RAY_PATH          Ray, for NeMo Curator's pipeline; needs nemo as well (about 29 MiB)
#   data-juicer  BENCH_DATA_JUICER_PATH  data-juicer's filter (about 9 MiB)
#
# torch, torchvision, DALI, pandas, pyarrow, PyYAML, packaging, filelock, click, tqdm and fsspec must be there
# already, and transformers for data-juicer. Cosmos-Xenna is left out, and Ray where it isn't asked for: nothing
# that needs them is called (see placeholders.py).
set -euo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd)
peer=${2:-nemo}
version=${3:-3.12}
python=${PYTHON:-python3}
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
mkdir "$work/site" "$work/wheels"

requests=(requests urllib3 certifi charset-normalizer idna)
case $peer in
  nemo) packages=(nemo-curator==1.4.0 transformers==4.57.6 tokenizers==0.22.1 'huggingface-hub==0.36.*'
      loguru attrs regex safetensors fsspec "${requests[@]}") ;;
  ray) packages=(ray==2.60.0 jsonschema jsonschema-specifications referencing rpds-py attrs msgpack protobuf) ;;
  data-juicer) packages=(py-data-juicer==1.6.1 datasets==5.2.0 dill==0.3.8 multiprocess==0.70.16 xxhash zstandard
      aiohttp aiohappyeyeballs aiosignal frozenlist multidict propcache yarl attrs httpx httpcore h11 anyio
      loguru psutil tomli emoji jsonargparse beautifulsoup4 soupsieve tabulate "${requests[@]}") ;;
  *) echo "no peer '$peer': nemo, ray or data-juicer" >&2; exit 2 ;;
esac

"$python" -m pip download -q --no-deps --only-binary=:all: --python-version "$version" \
  --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
  --platform manylinux2014_x86_64 -d "$work/wheels" "${packages[@]}"
if [ "$peer" = data-juicer ]; then
  "$python" -m pip wheel -q --no-deps -w "$work/wheels" wget==3.2  # one module; released without a wheel
fi
for wheel in "$work"/wheels/*.whl; do unzip -q -o "$wheel" -d "$work/site"; done

cd "$work/site"
case $peer in
  nemo) # Of the models only CLIP runs here; what the others are called is enough to import the library.
    find transformers/models -mindepth 2 -type f ! -path '*/auto/*' ! -path '*/clip/*' \
      ! -name __init__.py ! -name 'configuration_*' -delete ;;
  ray) # Java and C++ workers, the dashboard's pages, reinforcement learning.
    rm -rf ray/jars ray/cpp ray/dashboard/client ray/rllib ;;
  data-juicer) # Its command-line tools, and configurations and demos of its repository.
    rm -rf tools py_data_juicer-*.data ;;
esac
tar cJf "$out/$peer.tar.xz" --owner=0 --group=0 .
ls -l "$out/$peer.tar.xz"
