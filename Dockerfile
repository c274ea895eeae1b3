# docker build -t dali-aesthetic --build-arg CUDA=13 .   CUDA 12 or 13; 13 needs driver 580 or newer
# docker run --gpus all -v /data:/input -v /kept:/output -v /models:/models dali-aesthetic \
#     --input /input --output /output --threshold 0.5
# The container runs as uid 10001, which must be able to write /output; docker run --user "$(id -u):$(id -g)" ... runs it
# as you. The base image has only the CUDA runtime: torch and DALI bring their libraries, the host brings the driver.
ARG CUDA=12
FROM nvidia/cuda:12.8.1-base-ubuntu24.04 AS cuda12
# The torch on PyPI is built for CUDA 13.
ENV TORCH_INDEX=https://download.pytorch.org/whl/cu128
FROM nvidia/cuda:13.0.1-base-ubuntu24.04 AS cuda13
ENV TORCH_INDEX=https://download.pytorch.org/whl/cu130

# hadolint ignore=DL3006
FROM cuda${CUDA} AS runtime
ARG CUDA
ENV DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 \
    HF_HOME=/models/huggingface PATH=/opt/venv/bin:$PATH
# Triton builds its launchers with gcc and Python's headers when the fused kernels first run.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
# hadolint ignore=DL3013
RUN pip install --index-url "$TORCH_INDEX" torch torchvision

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY dali_aesthetic dali_aesthetic
# EXTRAS=,hopper adds the fused kernels for H100 and H200 (measured with CUDA=13).
ARG EXTRAS=
# hadolint ignore=DL3013
RUN pip install ".[cuda${CUDA},codecs${EXTRAS}]"

# BAKE=1 puts the default weights into the image; otherwise mount /models (see `dali-aesthetic download`).
ARG BAKE=0
RUN useradd --create-home --uid 10001 aesthetic \
    && mkdir -p /models /input /output \
    && if [ "$BAKE" = 1 ]; then dali-aesthetic download --model-dir /models; fi \
    && chown -R aesthetic /models /output
# A user id from `docker run --user` has no name and no home, so caches go to a folder that everyone can write.
ENV HOME=/tmp USER=aesthetic
USER 10001
WORKDIR /output
# `doctor` decodes an image on the GPU and hashes the weights. It runs rarely, because a long job needs both.
HEALTHCHECK --interval=1h --timeout=5m --start-period=5m --retries=2 \
    CMD ["dali-aesthetic", "doctor", "--model-dir", "/models", "--output", "/output"]
ENTRYPOINT ["dali-aesthetic", "run", "--model-dir", "/models"]
CMD ["--help"]
