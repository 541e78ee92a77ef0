# `make quickstart` and `make test` need Python 3.11 or newer and make, nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install quickstart test tiny-policies

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

# Builds the checkpoints in vrft/policy/checkpoints again, with the package's own SFT. About six minutes on two cores.
tiny-policies: install
	rm -rf runs/tiny
	$(BIN)/python -m vrft.policy.tiny runs/tiny/untrained
	for step in detection_1_warmup detection_2_mistune digits_1_warmup digits_2_mistune; do \
		$(BIN)/python -m vrft fit --config configs/tiny/$$step.yaml --run_dir runs/tiny/$$step || exit 1; \
	done
	for task in detection digits; do \
		rm -rf vrft/policy/checkpoints/tiny-$$task; \
		cp -r runs/tiny/$${task}_2_mistune/export vrft/policy/checkpoints/tiny-$$task; \
	done
