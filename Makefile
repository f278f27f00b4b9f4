# make train   train MNIST with fused ops        make test   run the test suite, a process for each core
# make test-all    the same with all combinations of parameters, and what takes long; ARGS=--rest for these alone
# make lint    ruff, mypy, stubtest, clang-format, workflows    make dev    compile in place, for work on the sources
# make sanitize ARGS=tests/capture    those tests with the extension compiled for AddressSanitizer and UBSan
# make sanitize-threads    teams of threads under ThreadSanitizer
# make demo    train in a browser tab             make web    the page alone: static files in web/dist
# make bench   measure against torch and other libraries; writes benchmarks/results, and the tables and picture of them
# make docs    build the documentation as a site in build/site
PYTHON ?= python3
VENV   ?= .venv
PIP     = $(VENV)/bin/pip --disable-pip-version-check
ARGS   ?=
SOURCES := $(shell find csrc python benchmarks CMakeLists.txt cmake pyproject.toml constraints.txt -type f -not -name '*.so' -not -path '*/__pycache__/*' -not -path 'benchmarks/results/*')
CXX_FILES := $(shell find csrc tests/cuda_emulator tests/team_checks web -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: train test test-all bench demo docs lint format dev web sanitize sanitize-threads clean

train: $(VENV)/.installed-train
	$(VENV)/bin/fastnn train $(ARGS)

# A process that has finished its own tests takes over others': neighbours share what is made once for a file.
PYTEST = $(VENV)/bin/python -m pytest -n logical --dist worksteal

test: $(VENV)/.installed-test
	$(PYTEST) $(ARGS)

test-all: $(VENV)/.installed-test
	$(PYTEST) --all $(ARGS)

bench: $(VENV)/.installed-bench
	$(VENV)/bin/fastnn bench --all --out benchmarks/results $(ARGS)
	$(VENV)/bin/python -m benchmarks.readme

docs: $(VENV)/.tools-docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

demo: web $(VENV)/.installed-train
	$(VENV)/bin/fastnn demo $(ARGS)

# stubtest: the stub has what the installed module has. Signatures, which pybind11 does not tell stubtest, are compared by
# tests/test_stubs.py; the classes of pybind11 have a metaclass of its own.
lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	@mkdir -p build && printf '%s\n' 'fastnn\._cpu\.[A-Z]\w+' > build/stubtest-allowed
	$(VENV)/bin/stubtest fastnn._cpu --ignore-missing-stub --allowlist build/stubtest-allowed
	$(VENV)/bin/clang-format --dry-run --Werror $(CXX_FILES)
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

format: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CXX_FILES)

CONFIGURE = $(VENV)/bin/cmake -S . -G Ninja -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_MAKE_PROGRAM=$(abspath $(VENV))/bin/ninja -DPython_EXECUTABLE=$(abspath $(VENV))/bin/python \
  -Dpybind11_DIR=$$($(VENV)/bin/python -m pybind11 --cmakedir)

dev: $(VENV)/.installed-dev
	$(CONFIGURE) -B build/dev
	$(VENV)/bin/cmake --build build/dev
	$(VENV)/bin/cmake --install build/dev --prefix python

# The sanitizer comes before all other libraries, torch's and Python's among them.
sanitize: $(VENV)/.installed-test
	$(CONFIGURE) --preset address
	$(VENV)/bin/cmake --build build/sanitize
	rm -rf build/sanitize/python && cp -r python build/sanitize/python
	$(VENV)/bin/cmake --install build/sanitize --prefix build/sanitize/python
	PYTHONPATH=$(abspath build/sanitize/python) ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 \
	  LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" \
	  $(VENV)/bin/python -m pytest $(ARGS)

# Where addresses are randomised further than ThreadSanitizer can follow, it does not start: setarch -R.
sanitize-threads: $(VENV)/.installed-dev
	$(CONFIGURE) --preset thread
	$(VENV)/bin/cmake --build build/sanitize-threads --target team_checks
	setarch -R build/sanitize-threads/tests/team_checks/team_checks

web: $(VENV)/.tools-web
	$(VENV)/bin/cmake -S web -B build/web -G Ninja -DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/web/zig.cmake \
	  -DCMAKE_MAKE_PROGRAM=$(abspath $(VENV))/bin/ninja -DFASTNN_PYTHON=$(abspath $(VENV))/bin/python
	$(VENV)/bin/cmake --build build/web
	$(VENV)/bin/cmake --install build/web --prefix web/dist

# An extra alone: the package, and torch, are not needed.
$(VENV)/.tools-%: $(VENV)/bin/python pyproject.toml
	$(PIP) install --quiet $$(sed -n '/^$* = /{s/.*\[//; s/[],"]/ /g; p;}' pyproject.toml)
	@touch $@

$(VENV)/bin/python:
	@echo "Making a Python environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# The package is compiled once for all that is installed from it. Of what pip says: which files are being compiled, what
# the compiler says of them, and all of it where it fails.
$(VENV)/.package: $(VENV)/bin/python $(SOURCES)
	@echo "Compiling fastnn, in one to two minutes on two idle cores; everything that is said goes to build/wheel.log"
	@rm -rf build/wheel && mkdir -p build
	@$(PIP) wheel -v --no-deps --wheel-dir build/wheel . 2>&1 | tee build/wheel.log \
	  | grep --line-buffered -E '^ *\[[0-9]+/[0-9]+\]|^ *-- CUDA kernels|(error|warning):' || true
	@ls build/wheel/fastnn-*.whl > /dev/null || { cat build/wheel.log; exit 1; }
	@$(PIP) install --quiet --no-deps --force-reinstall build/wheel/fastnn-*.whl
	@touch $@

# Not --quiet: torch, where there is none, is a download of minutes.
$(VENV)/.installed-%: $(VENV)/.package
	@echo "Installing fastnn[$*] and what it needs, torch among it, into $(VENV)"
	@$(PIP) install -c constraints.txt "$$(ls build/wheel/fastnn-*.whl)[$*]"
	@touch $@

clean:
	rm -rf build dist $(VENV) web/dist python/fastnn/*.so .hypothesis .pytest_cache .mypy_cache .ruff_cache
