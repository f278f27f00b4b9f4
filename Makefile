# make train   train MNIST with fused ops        make test   run the test suite
# make lint    ruff, mypy, clang-format           make dev    compile in place, for work on the sources
# make bench   measure against torch and other libraries; writes benchmarks/results and README's tables of them
PYTHON ?= python3
VENV   ?= .venv
PIP     = $(VENV)/bin/pip --disable-pip-version-check
ARGS   ?=
SOURCES := $(shell find csrc python benchmarks CMakeLists.txt cmake pyproject.toml constraints.txt -type f -not -name '*.so' -not -path '*/__pycache__/*' -not -path 'benchmarks/results/*')
CXX_FILES := $(shell find csrc tests/cuda_emulator -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: train test bench lint format dev clean

train: $(VENV)/.installed-train
	$(VENV)/bin/fastnn train $(ARGS)

test: $(VENV)/.installed-test
	$(VENV)/bin/python -m pytest $(ARGS)

bench: $(VENV)/.installed-bench
	$(VENV)/bin/fastnn bench --all --out benchmarks/results $(ARGS)
	$(VENV)/bin/python -m benchmarks.readme

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CXX_FILES)

dev: $(VENV)/.installed-dev
	$(VENV)/bin/cmake -S . -B build/dev -G Ninja -DCMAKE_BUILD_TYPE=Release \
	  -DCMAKE_MAKE_PROGRAM=$(abspath $(VENV))/bin/ninja -DPython_EXECUTABLE=$(abspath $(VENV))/bin/python \
	  -Dpybind11_DIR=$$($(VENV)/bin/python -m pybind11 --cmakedir)
	$(VENV)/bin/cmake --build build/dev
	$(VENV)/bin/cmake --install build/dev --prefix python

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The package is compiled once for all that is installed from it.
$(VENV)/.package: $(VENV)/bin/python $(SOURCES)
	rm -rf build/wheel
	$(PIP) wheel --no-deps --wheel-dir build/wheel .
	$(PIP) install --quiet --no-deps --force-reinstall build/wheel/fastnn-*.whl
	touch $@

$(VENV)/.installed-%: $(VENV)/.package
	$(PIP) install --quiet -c constraints.txt "$$(ls build/wheel/fastnn-*.whl)[$*]"
	touch $@

clean:
	rm -rf build dist $(VENV)
