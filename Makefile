# make demo: train and sample a small model.  make test: lint, types and the test suite.  make test-all: slow tests too.
# make parity: against PyTorch, transformers and diffusers.
# make gpu: is it right and fast on a GPU; with PYTHON=... in an environment that is there, and nothing is installed.
# make mutants: changes the code in COUNT places drawn by SEED, one at a time, and finds the changes that no test notices.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
WORKERS ?= 2
SEED ?= 0
COUNT ?= 300

.PHONY: demo install test test-all lint parity gpu mutants clean

demo: install
	$(BIN)/python train.py configs/transformer_lm.py --rundir runs/demo --steps 2000 --sample-every 400 --eval-every 400
	@echo
	@echo "A sample from runs/demo:"
	@$(BIN)/python sample.py runs/demo --prompt "ROMEO:" --temperature 0.8 --max-new-tokens 400
	@echo
	@echo "The run lies in runs/demo; activate the environment with: source $(BIN)/activate"

install: $(VENV)/.installed

test: lint
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup

test-all: test
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup -m slow

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

parity: $(VENV)/.parity
	$(BIN)/python -m pytest -m parity

gpu:
ifeq ($(origin PYTHON),file)
	$(MAKE) VENV=$(VENV)-gpu $(VENV)-gpu/.cuda
	PEER_PYTHON=$(VENV)-gpu-torch/bin/python $(VENV)-gpu/bin/python -m benchmarks.gpu
else
	$(PYTHON) -m benchmarks.gpu
endif

mutants: $(VENV)/.test
	$(BIN)/python tools/mutants.py --seed $(SEED) --count $(COUNT) --jobs $(WORKERS)

clean:
	rm -rf $(VENV) $(VENV)-gpu $(VENV)-gpu-torch .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is too old: Python 3.11 or newer is needed; name one with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.test: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

# torch-fidelity comes without its torchvision: a build that does not fit this PyTorch would break transformers' import.
$(VENV)/.parity: $(VENV)/.test
	$(BIN)/pip install --quiet --editable '.[parity]'
	$(BIN)/pip install --quiet --no-deps torch-fidelity==0.4.0
	touch $@

# PyTorch has an environment of its own, since it brings other versions of CUDA's libraries; it may fail to install.
$(VENV)/.cuda: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet --editable '.[cuda]'
	-$(PYTHON) -m venv $(VENV)-torch && $(VENV)-torch/bin/pip install --quiet torch
	touch $@
