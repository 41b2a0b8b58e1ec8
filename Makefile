# Everything is installed into .venv; nothing else on the machine changes.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

CXX_SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

# compressai, the baseline of tests and benchmarks, has no wheels for Python 3.13.
SUITABLE := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for python in python3 python3.12 python3.11 python3.10; do \
	$$python -c '$(SUITABLE)' 2>/dev/null && echo $$python && break; done)

# Compute capabilities for make kernels, and the models whose launches are compiled.
TARGETS ?= 80,86,89,90,100,120
MODELS ?= mlic,mlic_plus,mlic_plus_plus,photo,demo,wide

.PHONY: help demo test test-arm test-arm-golden lint format kernels bench bench-compare report docs gpu rehearse \
	fuzz fuzz-python fuzz-coverage sanitize soak clean

help:
	@echo "make demo    compress a photograph and show it beside the original"
	@echo "make test    run the tests"
	@echo "make test-arm   test the C++ code on an emulated ARM64 and on a big-endian machine"
	@echo "make test-arm-golden   decode all golden streams on an emulated ARM64"
	@echo "make lint    check style, types, imports and formatting"
	@echo "make format  correct formatting"
	@echo "make kernels compile the GPU kernels ahead of time, without a GPU, and report"
	@echo "make gpu     test and measure on a GPU, results in build/gpu"
	@echo "make rehearse   go through make gpu without one, with the versions of a machine that has one"
	@echo "make bench   time coders, kernels, stages and the whole codec on this machine"
	@echo "make bench-compare   the same, and fail if something got slower than what is stored"
	@echo "make report  write docs/benchmarks.md from the stored results"
	@echo "make docs    build the pages of docs/ and the reference of the API, in build/docs"
	@echo "make fuzz    fuzz the C++ code, SECONDS=60 a target; needs clang"
	@echo "make fuzz-python   fuzz the Python code, SECONDS=60 a target; installs atheris"
	@echo "make fuzz-coverage   what the kept inputs of the fuzzers cover, by file"
	@echo "make sanitize   the CPU engine under ThreadSanitizer and AddressSanitizer; needs clang"
	@echo "make soak    live as a service does for MINUTES=60, and see whether anything grows"
	@echo "make clean   remove .venv and everything that was built"

$(INSTALLED): pyproject.toml constraints.txt setup.py CMakeLists.txt $(CXX_SOURCES)
	@test -n "$(PYTHON)" || \
		{ echo "No Python 3.10, 3.11 or 3.12 found. Name one: make PYTHON=/path/to/python"; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-arm:
	tests/portable/run.sh

test-arm-golden: test-arm $(INSTALLED)
	PYTHON=$(BIN)/python tests/portable/golden.sh

lint: $(INSTALLED)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES) fuzz/*.cpp fuzz/*.h tests/portable/check.cpp

format: $(INSTALLED)
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES) fuzz/*.cpp fuzz/*.h tests/portable/check.cpp

docs: $(INSTALLED)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

kernels: $(INSTALLED)
	$(BIN)/python -m mlic_fast.kernels.compile --targets $(TARGETS) --models $(MODELS)
	@command -v nvcc >/dev/null || echo "nvcc was not found: the range coder's kernels are left out"
	! command -v nvcc >/dev/null || $(BIN)/python benchmarks/compile_coder.py --targets $(TARGETS)

GPU := build/gpu

gpu: $(INSTALLED)
	$(BIN)/python benchmarks/gpu/check.py $(GPU)
	$(BIN)/python benchmarks/gpu/measure.py $(GPU)
	$(BIN)/python benchmarks/gpu/tune.py $(GPU)
	$(BIN)/python benchmarks/results.py $(GPU)/measure.json $(GPU)/tune.json $(GPU)/bench-*.json

rehearse:
	benchmarks/gpu/rehearse.sh

bench: $(INSTALLED)
	$(BIN)/python benchmarks/suite.py --json suite.json

bench-compare: $(INSTALLED)
	$(BIN)/python benchmarks/suite.py --compare

report: $(INSTALLED)
	$(BIN)/python benchmarks/report.py

SECONDS ?= 60
fuzz:
	$(MAKE) -C fuzz --jobs 2 all
	$(MAKE) -C fuzz corpus
	$(MAKE) -C fuzz --jobs 2 run SECONDS=$(SECONDS)

fuzz-python: $(INSTALLED)
	$(MAKE) -C fuzz python SECONDS=$(SECONDS)
	$(MAKE) -C fuzz python-coverage

fuzz-coverage:
	$(MAKE) -C fuzz --jobs 2 coverage

sanitize: $(INSTALLED)
	$(MAKE) -C fuzz --jobs 2 threads
	$(MAKE) -C fuzz engine

MINUTES ?= 60
soak: $(INSTALLED)
	ONEDNN_PRIMITIVE_CACHE_CAPACITY=16 $(BIN)/python tests/soak.py --minutes $(MINUTES)

clean:
	rm -rf $(VENV) build dist demo suite.json mlic_fast.egg-info mlic_fast/_C*.so
	rm -rf .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
