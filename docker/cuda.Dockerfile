# docker build -f docker/cuda.Dockerfile -t learn-torchrec:cuda .
# The wheels of torch and fbgemm bring the CUDA libraries; the host gives the driver
# through the NVIDIA container toolkit.
FROM python:3.11-slim-bookworm

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/learn-torchrec
COPY . .
RUN PIP_NO_CACHE_DIR=1 make env ACCELERATOR=cuda

# No entry point: torchx gives `bash -c "torchrun ..."` as the command. It lays a
# workspace over the working directory, which holds the sources in use.
ENV PATH=/opt/learn-torchrec/.venv/bin:${PATH} \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN useradd --create-home --uid 1000 learn
USER 1000
CMD ["learn-torchrec", "--help"]
