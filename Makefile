# make demo   anti-alias a network with real weights; the report lies in out/demo
# make test   every check and every test
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test check format benchmark clean

help:
	@echo "make demo       anti-alias a network with real weights; the report lies in out/demo"
	@echo "make test       make check, then every test (JOBS=$(JOBS) processes)"
	@echo "make check      lint, formatting, types"
	@echo "make format     format and mend what ruff can"
	@echo "make benchmark  time layers and networks against the untouched ones and the peers"
	@echo "make clean      remove caches, out/ and $(VENV)"
	@echo "PYTHON=python3.12 chooses the interpreter (3.11 or newer) that makes $(VENV)"

# Made again when pyproject.toml changes; an interrupted install leaves no stamp behind.
$(STAMP): pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "$(PYTHON): not found. Name a Python of 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "aa_surgery needs Python 3.11 or newer; $(PYTHON) is $$("$(PYTHON)" -V 2>&1)." \
	    "Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --editable ".[all]"
	@touch $@

demo: $(STAMP)
	$(BIN)/aa-surgery demo --out out/demo

# One thread a process: torch's threads in several processes would fight for the same cores.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(STAMP)
	$(BIN)/python tools/benchmark.py

clean:
	rm -rf $(VENV) out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
