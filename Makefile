# `make quickstart` and `make test` need Python 3.11 or newer and make, nothing else.
PYTHON ?= python3
BIN := .venv/bin
# each of the many processes of the tests would compile all modules
unexport PYTHONDONTWRITEBYTECODE

.PHONY: bench-env browser check docs fuzz install quickstart standin test tiny-policies vllm-env wheel

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("vrft needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

quickstart: install
	$(BIN)/python -m vrft fit --config quickstart

# pytest with arguments, and mypy beside it, which alone leaves a core idle; fails if either does, and ends with what mypy
# says.
beside_mypy = types=$$(mktemp); $(BIN)/mypy >$$types 2>&1 & mypy=$$!; \
	$(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder $(1); tests=$$?; \
	wait $$mypy; typed=$$?; cat $$types; rm $$types; exit $$((tests + typed))

# Linters and the fast tests.
check: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	@$(call beside_mypy,-n 3 -m 'not slow and not vllm')

# Linters and all tests, in three processes on two cores since some tests wait for time-outs.
test: install browser
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	@$(call beside_mypy,-n 3)

# Tests on a stand-in for a GPU: skipped without g++ and Python's headers, unless VRFT_STANDIN=required.
standin: install
	@if command -v g++ >/dev/null \
	  && test -f "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h"; then \
	  $(BIN)/python -m tests.standin.build \
	  && $(BIN)/python -m pytest -p tests.standin.device -n 2 tests/standin; \
	elif test "$$VRFT_STANDIN" = required; then echo "make standin needs g++ and Python's headers"; exit 1; \
	else echo "no g++ and Python's headers: the tests on a stand-in for a GPU are skipped"; fi

# The documentation as a site, in site/: open site/index.html. A broken link or reference is an error.
docs: .venv/docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/docs-installed: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@

# Builds the wheel, checks its metadata, and uses it outside of the checkout: half a minute.
wheel: .venv/release-installed
	$(BIN)/python tests/wheel.py

.venv/release-installed: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[release]'
	touch $@

# A million broken inputs for the readers of foreign texts and files.
fuzz: install
	FUZZ_INPUTS=1000000 FUZZ_RANDOM=1 $(BIN)/python -m pytest -n 2 tests/fuzz

# What the tests of the report need: they are skipped where it isn't there, unless VRFT_BROWSER=required.
browser:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null \
	|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get -qq update \
	     && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends chromium chromium-driver >/dev/null; } \
	|| echo "no chromium and chromedriver: the tests of the report in a browser are skipped"

# Builds vrft/policy/checkpoints again with the package's own SFT: about 15 minutes on one core.
tiny-policies: install
	rm -rf runs/tiny
	$(BIN)/python -m vrft.policy.tiny runs/tiny/untrained
	$(BIN)/python -m vrft fit --config tiny/detection_1_warmup
	$(BIN)/python -m vrft fit --config tiny/detection_2_mistune
	$(BIN)/python -m vrft fit --config tiny/digits
	rm -rf vrft/policy/checkpoints/tiny-detection vrft/policy/checkpoints/tiny-digits
	$(BIN)/python -m vrft export runs/tiny/detection_2_mistune --dtype bfloat16 --output runs/tiny/tiny-detection
	$(BIN)/python -m vrft export runs/tiny/digits --dtype bfloat16 --output runs/tiny/tiny-digits
	mv runs/tiny/tiny-detection runs/tiny/tiny-digits vrft/policy/checkpoints
	rm vrft/policy/checkpoints/tiny-d*/README.md

# A vLLM server for `pytest -m vllm`: on a machine without a GPU, 3.6 GB and a few minutes.
vllm-env:
	$(PYTHON) tests/vllm_env.py .venv-vllm

# The TRL side of benchmarks/step.py, in an environment of its own: about 2 minutes and 1.6 GB.
bench-env: .venv-bench/installed

.venv-bench/installed: benchmarks/requirements.txt constraints.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --requirement $<
	touch $@
