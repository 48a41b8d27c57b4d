# make demo: train and sample a small model.  make test: lint, types and the test suite.  make parity: against PyTorch.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
WORKERS ?= 2

.PHONY: demo install test lint parity clean

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

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

parity: $(VENV)/.parity
	$(BIN)/python -m pytest -m parity

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

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
