# Two commands do all the set-up: `make run` and `make test`. Python 3.11+, make and gcc are all they need.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
NAME   := mlsecd

.DEFAULT_GOAL := help
.PHONY: help run test test-servers test-gpu lint bench bounds soak fakenvml deb pictures release clean

help: ## show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "mlsecd needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.run: $(VENV)/.made pyproject.toml
	@echo "installing mlsecd into $(VENV) (about half a minute, once)"
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@echo "installing the test, lint and bench groups into $(VENV)"
	$(BIN)/python -m pip install --quiet --group dev
	@touch $@

run: $(VENV)/.run ## start the daemon on a bundled recording: http://127.0.0.1:9847/
	@$(BIN)/$(NAME) run --demo

test: $(VENV)/.dev lint ## lint, type-check and pass the whole suite, with branch coverage
	$(BIN)/python -m pytest -m 'not slow and not servers and not gpu' --reruns 1 --reruns-delay 2 --cov --cov-report=term:skip-covered

test-servers: $(VENV)/.dev ## real vLLM, llama.cpp, Triton, MLServer, BentoML, LiteLLM, Dynamo under watch; installs 5 GB
	tests/e2e/real_servers.sh $(VENV)/servers
	MLSECD_TEST_SERVERS=$(abspath $(VENV))/servers $(BIN)/python -m pytest -m servers -rs

test-gpu: $(VENV)/.dev ## on a real NVIDIA GPU: every CUDA kernel, a daemon that is a guest there, and the kernels' times
	MLSECD_TEST_GPU=1 $(BIN)/python -m pytest -m 'not slow' tests/kernels/test_cuda_simulator.py tests/e2e/test_real_gpu.py
	$(BIN)/python -m bench.kernels --device cuda

lint: $(VENV)/.dev ## ruff (all rules), formatting, mypy strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev ## measure the budgets of docs/performance.md on this machine
	$(BIN)/python -m bench

bounds: $(VENV)/.dev ## all that runs kernels, once with every index checked, in a compiler cache of its own: minutes
	cache=$$(mktemp -d) && NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=$$cache $(BIN)/python -m pytest tests/kernels tests/windows \
		tests/detectors/test_extraction*.py tests/detectors/test_campaign*.py tests/detectors/test_drift*.py tests/test_conformance.py \
		-k 'not compiles and not assembly and not cache' -m 'not slow and not servers and not gpu' --timeout 600; \
		status=$$?; rm -rf "$$cache"; exit $$status

soak: $(VENV)/.dev ## the slow tests: hours of traffic, memory that must not grow
	$(BIN)/python -m pytest -m 'slow and not servers and not gpu'

fakenvml: $(VENV)/.dev ## build the stand-in for libnvidia-ml.so.1 and say how to start the daemon on it
	$(BIN)/python -m tests.fakenvml

deb: $(VENV)/.dev ## build the Debian package into dist/, with the distribution's own Python
	PIP=$(abspath $(BIN))/pip packaging/build-deb.sh dist

pictures: $(VENV)/.dev ## dashboards and landing page as pictures for the docs (npm, chromium, prometheus)
	$(BIN)/python -m tools.make_pictures

release: $(VENV)/.dev ## wheel, sdist, Debian package, SBOM and checksums into dist/, signed with SIGN_KEY (an OpenSSH key)
	$(BIN)/python -m tools.make_release

clean: ## remove what was built
	rm -rf $(VENV) build dist .coverage* .pytest_cache .mypy_cache .ruff_cache tests/fakenvml/build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
