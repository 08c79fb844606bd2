# docker build -f docker/serve.Dockerfile -t learn-torchrec:serve .
# docker run -p 8080:8080 -v ./runs:/runs:ro -v events:/events -e LEARN_TORCHREC_TOKEN=... \
#   learn-torchrec:serve --bundle /runs/bundle --index /runs/index \
#   --towers /runs/towers --content /runs/content
FROM python:3.11-slim-bookworm

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/learn-torchrec
COPY . .
# PyTorch's index has the small CPU build of torch; PyPI's is the CUDA build.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN PIP_NO_CACHE_DIR=1 make .venv/.installed-serve ACCELERATOR=cpu TORCH_INDEX=${TORCH_INDEX}

ENV PATH=/opt/learn-torchrec/.venv/bin:${PATH}
RUN useradd --create-home --uid 1000 learn && install -d -o learn /events
USER 1000
EXPOSE 8080
HEALTHCHECK CMD ["python", "-c", "import urllib.request as r; r.urlopen(r.Request('http://127.0.0.1:8080/health', headers={'host': 'localhost'}))"]
ENTRYPOINT ["learn-torchrec", "serve", "--host", "0.0.0.0", "--events", "/events/events.sqlite"]
