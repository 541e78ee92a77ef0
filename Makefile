# `make quickstart` and `make test` need Python 3.11 or newer and make, nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install quickstart test fuzz tiny-policies vllm-env

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("vrft needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

quickstart: install
	$(BIN)/python -m vrft fit --config configs/quickstart.yaml

test: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest
	$(BIN)/python tests/fuzz/run.py --inputs 40000

# Broken inputs for everything that reads what others wrote: about 20 minutes on two cores.
fuzz: install
	$(BIN)/python tests/fuzz/run.py --inputs 1000000 --seed 1

# Builds vrft/policy/checkpoints again with the package's own SFT: about 15 minutes on one core.
tiny-policies: install
	rm -rf runs/tiny
	$(BIN)/python -m vrft.policy.tiny runs/tiny/untrained
	$(BIN)/python -m vrft fit --config configs/tiny/detection_1_warmup.yaml
	$(BIN)/python -m vrft fit --config configs/tiny/detection_2_mistune.yaml
	$(BIN)/python -m vrft fit --config configs/tiny/digits.yaml
	rm -rf vrft/policy/checkpoints
	mkdir vrft/policy/checkpoints
	cp -r runs/tiny/detection_2_mistune/export vrft/policy/checkpoints/tiny-detection
	cp -r runs/tiny/digits/export vrft/policy/checkpoints/tiny-digits

# A vLLM server for `pytest -m vllm`: on a machine without a GPU, 3.6 GB and a few minutes.
vllm-env:
	$(PYTHON) tests/vllm_env.py .venv-vllm
