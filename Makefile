# Everything runs in a virtual environment of its own; `make demo` and `make test` need Python 3.10 to 3.13.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PLUGINS := $(wildcard plugins/*/pyproject.toml)

.PHONY: help demo test test-slow lint docs bench gpu clean

help:
	@echo "make demo       install, write a seeded mbt2018 checkpoint, analyze and wrap it (offline)"
	@echo "make test       install, plugins too, then lint, type-check and run the test suite"
	@echo "make test-slow  the long checks: full widths, many more random cases"
	@echo "make bench      all benchmarks, which takes hours; python -m benchmarks NAME runs one"
	@echo "make gpu        on a machine with a GPU: in twelve minutes, bits, speed and memory; then the tests"
	@echo "make lint       ruff and mypy only"
	@echo "make docs       the documentation as a site, in build/site"

$(INSTALLED): pyproject.toml $(PLUGINS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
ifneq ($(PLUGINS),)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation $(PLUGINS:%/pyproject.toml=--editable ./%)
endif
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python -W ignore::FutureWarning -m overlap_tool.cli.demo demo
	$(BIN)/overlap-tool analyze demo/mbt2018.pt
	$(BIN)/overlap-tool wrap demo/mbt2018.pt --tile 64

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two tests at a time; a thread of PyTorch's that waits is to leave its core to the other.
test: lint
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow
	PYTHONPATH=tests $(BIN)/python -m support.every_float
	OMP_WAIT_POLICY=passive CASES=12000 $(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal \
		tests/geometry tests/graph/test_random_networks.py tests/runtime/test_barriers.py
	OMP_WAIT_POLICY=passive CASES=1000 $(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal tests/rules

docs: $(INSTALLED)
	$(BIN)/python -m mkdocs build

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

gpu: $(INSTALLED)
	$(BIN)/python scripts/on_a_gpu.py
	$(BIN)/python -m pytest -rs tests/runtime/test_cuda.py tests/runtime/test_devices.py tests/files/test_files_commands.py::test_on_a_gpu

clean:
	rm -rf $(VENV) demo build *.egg-info
