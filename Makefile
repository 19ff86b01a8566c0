# make demo, make test: each works alone on a machine with Python >= 3.11 (with venv), a C compiler and make.
# Everything lives in .venv; stamp files in it say what has been done, so a second run starts at once.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

VENV := .venv
PY := $(VENV)/bin/python
JOBS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
ARTIFACTS ?= artifacts

# The first interpreter on PATH that is new enough; PYTHON=... overrides.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
  if "$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
    command -v "$$p"; break; fi; done)

EXT_SOURCES := $(wildcard nokv/_ext/*.pyx nokv/_ext/*.pxd nokv/_ext/*.h nokv/_ext/*.c.in) setup.py
LINTED := nokv shell bench tests scripts setup.py

.DEFAULT_GOAL := help
.PHONY: help setup build test test-full test-long test-asan demo lint format bench clean distclean

help:
	@echo "make demo        the main job end to end: fill a directory, promote it, replicate it, break it, check it"
	@echo "make test        the whole test suite, without the long tests (under 10 minutes on 2 cores)"
	@echo "make lint        ruff, mypy --strict, stubtest, the import-layer test"
	@echo "make build       .venv with pinned dependencies, and the extensions built in place"
	@echo "make bench       benchmarks beside the peers that are installed; the table goes to $(ARTIFACTS)/bench.md"
	@echo "make test-full   all tests, the repeated ones more often    make test-long  the long ones, and the repeated ones for hours"
	@echo "make test-asan   engine, model and crash tests under ASan and UBSan    make clean  what was built    make distclean  and .venv"

# -- the environment --------------------------------------------------------------------------------------------------
$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "no Python >= 3.11 with venv on PATH: install one (Debian: apt-get install" \
	  "python3-venv python3-dev) or run make PYTHON=/path/to/python3" >&2; exit 2; }
	@command -v "$${CC:-cc}" >/dev/null 2>&1 || command -v gcc >/dev/null 2>&1 || { \
	  echo "no C compiler on PATH: install one (Debian: apt-get install build-essential)" >&2; exit 2; }
	"$(PYTHON)" -m venv $(VENV)
	touch $@

PIP := $(PY) -m pip --disable-pip-version-check --no-input --quiet

$(VENV)/.runtime: $(VENV)/.created requirements/build.txt requirements/runtime.txt
	$(PIP) install -r requirements/build.txt -r requirements/runtime.txt
	touch $@

$(VENV)/.test: $(VENV)/.runtime requirements/test.txt
	$(PIP) install -r requirements/test.txt
	touch $@

$(VENV)/.lint: $(VENV)/.test requirements/lint.txt
	$(PIP) install -r requirements/lint.txt
	touch $@

# Peers that have no wheel for this machine are left out of the table.
$(VENV)/.bench: $(VENV)/.test requirements/bench.txt
	$(PIP) install pytest-benchmark -c requirements/bench.txt
	$(PIP) install -r requirements/bench.txt || echo "some peers could not be installed; their columns stay empty" >&2
	touch $@

# -- the product ------------------------------------------------------------------------------------------------------
# The extensions are built in place, beside their sources, in parallel; the editable install then finds them done, and
# puts `nokv` and `nokv-shell` into .venv/bin.
$(VENV)/.built: $(VENV)/.runtime $(EXT_SOURCES)
	$(PY) setup.py --quiet build_ext --inplace --parallel $(JOBS)
	touch $@

$(VENV)/.installed: $(VENV)/.built pyproject.toml
	test -x $(VENV)/bin/nokv -a $(VENV)/.installed -nt pyproject.toml || \
	  $(PIP) install --no-deps --no-build-isolation --editable .
	touch $@

setup: $(VENV)/.test $(VENV)/.lint
build: $(VENV)/.installed

# -- what people run --------------------------------------------------------------------------------------------------
test: build $(VENV)/.test
	$(PY) -m pytest -n $(JOBS) --dist loadfile -m "not long" $(PYTEST_ARGS)

test-long: build $(VENV)/.test
	NOKV_TEST_COUNTS=t2 $(PY) -m pytest -n $(JOBS) --dist worksteal -m "long or counted" --timeout 14400 $(PYTEST_ARGS)

test-full: build $(VENV)/.test
	NOKV_TEST_COUNTS=t1 $(PY) -m pytest -n $(JOBS) --dist loadfile --timeout 3600 $(PYTEST_ARGS)

demo: build
	$(PY) scripts/ops/demo.py $(DEMO_ARGS)

lint: build $(VENV)/.lint
	$(PY) -m ruff check $(LINTED)
	$(PY) -m ruff format --check $(LINTED)
	$(PY) -m mypy
	$(PY) -m mypy.stubtest --concise --ignore-missing-stub --ignore-disjoint-bases --allowlist scripts/dev/stubtest_allow.txt \
	  --ignore-unused-allowlist $$($(PY) scripts/dev/stubbed.py)
	$(PY) -m pytest tests/test_layers.py

format: $(VENV)/.lint
	$(PY) -m ruff check --fix $(LINTED)
	$(PY) -m ruff format $(LINTED)

bench: build $(VENV)/.bench
	mkdir -p $(ARTIFACTS)
	$(PY) -m pytest bench -p no:cacheprovider --benchmark-only --benchmark-json $(ARTIFACTS)/bench.json --timeout 900 $(BENCH_ARGS)
	$(PY) -m bench.report $(ARTIFACTS)/bench.json | tee $(ARTIFACTS)/bench.md

# A copy of the tree is built with the sanitizers, so that the ordinary build stays as it is. Leaks of the engine are looked for
# at the end of every process, the tests' subprocesses too (ASAN_LEAKS=0 where ptrace is forbidden). Standard error is left
# alone, so that a report can be seen. About seven minutes on two cores.
ASAN_LEAKS ?= 1
ASAN_TESTS ?= tests/model tests/crash tests/fuzz $(addprefix tests/unit/,engine mvcc raftstore/test_command.py)
ASAN_TESTS_BESIDE ?= $(addprefix tests/unit/,compat raftstore/test_formats.py multiraft)   # beside grpc, OpenSSL, LevelDB, which leak
ASAN_ENV = UBSAN_OPTIONS=print_stacktrace=1 LSAN_OPTIONS="suppressions=$(CURDIR)/scripts/dev/lsan.txt:print_suppressions=0" \
  PYTHONMALLOC=malloc PYTHONPATH="$(CURDIR)/build/asan:$(CURDIR)/build/asan/shell" \
  LD_PRELOAD="$$($${CC:-gcc} -print-file-name=libasan.so) $$($${CC:-gcc} -print-file-name=libubsan.so)"
ASAN_PYTEST = ../../$(PY) -m pytest --capture=sys -p no:cacheprovider -m "not long and not e2e" --timeout 900 $(PYTEST_ARGS)
test-asan: $(VENV)/.test
	rm -rf build/asan && mkdir -p build/asan
	cp -R nokv shell tests docs proto README.md pyproject.toml setup.py build/asan/
	rm -f build/asan/nokv/_ext/*.so build/asan/nokv/_ext/*.c   # a copy is as new as its source: build all
	cd build/asan && NOKV_DEBUG_EXT=1 NOKV_SANITIZE=1 ../../$(PY) setup.py --quiet build_ext --inplace --parallel $(JOBS)
	cd build/asan && ASAN_OPTIONS=detect_leaks=$(ASAN_LEAKS) $(ASAN_ENV) $(ASAN_PYTEST) $(ASAN_TESTS)
	cd build/asan && ASAN_OPTIONS=detect_leaks=0 $(ASAN_ENV) $(ASAN_PYTEST) $(ASAN_TESTS_BESIDE)

clean:
	rm -rf build dist $(ARTIFACTS) .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks *.egg-info shell/*.egg-info
	rm -f nokv/_ext/*.so nokv/_ext/*.c nokv/_ext/*.html $(VENV)/.built
	find nokv shell tests bench scripts -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
