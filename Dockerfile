# docker build -t dali-aesthetic .                       CUDA 12; --build-arg CUDA=13 for 13
# docker run --gpus all -v DATA:/input -v OUT:/output -v MODELS:/models dali-aesthetic \
#     --input /input --output /output --threshold 0.5
# The base holds the CUDA runtime only: torch and DALI bring their own libraries, the driver comes from the host.
ARG CUDA=12
FROM nvidia/cuda:12.8.1-base-ubuntu24.04 AS cuda12
FROM nvidia/cuda:13.0.1-base-ubuntu24.04 AS cuda13

# hadolint ignore=DL3006
FROM cuda${CUDA} AS runtime
ARG CUDA
ENV DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 \
    HF_HOME=/models/huggingface PATH=/opt/venv/bin:$PATH
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY dali_aesthetic dali_aesthetic
# hadolint ignore=DL3013
RUN pip install ".[cuda${CUDA}]"

# BAKE=1 puts the default weights into the image; otherwise mount /models (see `dali-aesthetic download`).
ARG BAKE=0
RUN useradd --create-home --uid 10001 aesthetic \
    && mkdir -p /models /input /output \
    && if [ "$BAKE" = 1 ]; then dali-aesthetic download --model-dir /models; fi \
    && chown -R aesthetic /models /output
USER 10001
WORKDIR /output
ENTRYPOINT ["dali-aesthetic", "run", "--model-dir", "/models"]
CMD ["--help"]
