# docker build -f docker/cpu.Dockerfile -t learn-torchrec:cpu .
FROM python:3.11-slim-bookworm

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/learn-torchrec
COPY . .
# PyTorch's index has the small CPU build of torch; PyPI's is the CUDA build.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN PIP_NO_CACHE_DIR=1 make env ACCELERATOR=cpu TORCH_INDEX=${TORCH_INDEX}

# No entry point: torchx gives `bash -c "torchrun ..."` as the command. It lays a
# workspace over the working directory, which holds the sources in use.
ENV PATH=/opt/learn-torchrec/.venv/bin:${PATH}
RUN useradd --create-home --uid 1000 learn
USER 1000
CMD ["learn-torchrec", "--help"]
