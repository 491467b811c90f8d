# Every target sets up what it needs. PYTHON chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := $(wildcard plugins/*/pyproject.toml)
# Compiled at installation.
COMPILED := $(wildcard setup.py multifd/pump/_build.py multifd/pump/*.[ch] plugins/*/setup.py plugins/*/src/*/_build.py plugins/*/src/*/*.[ch])
# Reinstalled when what describes the distributions changes.
STAMP := $(VENV)/.installed

.PHONY: help demo test sanitize fuzz fuzz-c faults soak interop lint docs bench dist check-dist check-machine clean

help:
	@echo "make demo    migrate memory that is being written by every installed method and a running QEMU guest, and show the figures"
	@echo "make test    all tests, of multifd and of every plugin"
	@echo "make sanitize the tests of the packet pump and of qpl's C code under ASan and UBSan, and of their threads under TSan"
	@echo "make fuzz    TARGET=all SECONDS=180: every parser of what others wrote, in turn, under a coverage-guided fuzzer"
	@echo "make fuzz-c  TARGET=recv_qpl SECONDS=180: the same, guided by the branches of C, under ASan and UBSan; needs clang"
	@echo "make faults  RUNS=1000 SEED=1: migrations in which a process is killed or its disk, files, clock or connections fail"
	@echo "make soak    MINUTES=60: migrations of every kind in one long run, whose memory, descriptors, threads and files stay flat"
	@echo "make interop every case of the tests against real QEMUs, for hours; \`make test\` tries a pairwise selection"
	@echo "make lint    ruff, mypy --strict, import-linter"
	@echo "make docs    the documentation, into docs/_build/html"
	@echo "make dist    what is published, into dist: source distributions, wheels with C code, pure wheels; check-dist tries them"
	@echo "make bench   one table of ratios: QEMU to QEMU, iperf3, zstd through socat; then where the time goes, and the rest"

check-machine:
	@PYTHON="$(PYTHON)" sh tests/check-machine.sh

$(STAMP): pyproject.toml setup.cfg multifd/_version.py $(PLUGINS) $(COMPILED) | check-machine
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test,lint,docs,build]' \
		$(foreach p,$(PLUGINS),-e '$(dir $(p))')
	@touch $@

demo: $(STAMP)
	$(BIN)/multifd demo
	@echo "Second act: qpl's own job management on a simulated IAA, beside the published experiment"
	$(BIN)/multifd-iaa simulate --devices 1 --channels 4 --policy wait --policy fallback
	@PYTHONPATH=tests $(BIN)/python -m interop.demo

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# The pump and the plugin once more, with sanitizers, beside the installed ones. The interpreter's own leaks are its own affair; the
# kit measures memory, of which the sanitizer keeps what was freed. Last the fuzzer's inputs and zstd's buffers, each with the
# sanitizer's own allocator behind it.
SANITIZED := $(CURDIR)/build/sanitize
THROUGH_C := recv or packet or relay or send or zstd or sanitized

UNDER_ASAN := LD_PRELOAD="$$(gcc -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 \
	UBSAN_OPTIONS=print_stacktrace=1

sanitize: $(STAMP)
	CC=gcc MULTIFD_BUILD=sanitize $(BIN)/python setup.py -q \
		build --build-base $(SANITIZED)/pump --build-lib $(SANITIZED)/multifd
	MULTIFD_SANITIZED=$(SANITIZED)/multifd PYTHONPATH=$(SANITIZED)/multifd:$(CURDIR) $(UNDER_ASAN) \
		$(BIN)/python -P -m pytest tests/pump tests/engine/test_splice.py tests/engine/test_relay.py \
		--deselect tests/engine/test_relay.py::TestCommand $(PYTEST_ARGS)
	cd plugins/multifd-qpl && CC=gcc MULTIFD_QPL_BUILD=sanitize $(CURDIR)/$(BIN)/python setup.py -q \
		build --build-base $(SANITIZED)/work --build-lib $(SANITIZED)/lib
	MULTIFD_QPL_SANITIZED=$(SANITIZED)/lib PYTHONPATH=$(SANITIZED)/lib \
		$(UNDER_ASAN) $(BIN)/python -m pytest plugins/multifd-qpl/tests --ignore plugins/multifd-qpl/tests/test_conformance.py $(PYTEST_ARGS)
	MULTIFD_SANITIZED=$(SANITIZED)/multifd MULTIFD_QPL_SANITIZED=$(SANITIZED)/lib \
		PYTHONPATH=$(SANITIZED)/multifd:$(SANITIZED)/lib:$(CURDIR) PYTHONMALLOC=malloc $(UNDER_ASAN) \
		$(BIN)/python -P -m pytest tests/fuzz tests/test_methods.py -k "$(THROUGH_C)" $(PYTEST_ARGS)

# By atheris. What it finds stays in build/fuzz, and the corpus grows there; see docs/fuzzing.md.
TARGET ?= all
SECONDS ?= 180

fuzz: $(STAMP)
	$(BIN)/python -c "import atheris" 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	PYTHONPATH=tests $(BIN)/python -m tests.fuzz.campaign $(TARGET) $(SECONDS) $(FUZZ_ARGS)

# The same with the branches of C followed, too, under ASan and UBSan: for what goes through the pump or qpl. Needs clang.
FUZZED := $(CURDIR)/build/fuzzed

fuzz-c: $(STAMP)
	$(BIN)/python -c "import atheris" 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	CC=clang LDSHARED="clang -shared" MULTIFD_BUILD=fuzz $(BIN)/python setup.py -q \
		build --build-base $(FUZZED)/pump --build-lib $(FUZZED)/lib
	cd plugins/multifd-qpl && CC=clang LDSHARED="clang -shared" MULTIFD_QPL_BUILD=fuzz $(CURDIR)/$(BIN)/python setup.py -q \
		build --build-base $(FUZZED)/qpl --build-lib $(FUZZED)/lib
	PYTHONPATH=$(FUZZED)/lib:$(CURDIR):tests PYTHONSAFEPATH=1 ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		LD_PRELOAD="$$($(BIN)/python -c 'import atheris; print(atheris.path())')/asan_with_fuzzer.so" \
		$(BIN)/python -m tests.fuzz.campaign $(TARGET) $(SECONDS) $(FUZZ_ARGS)

# What a trial that is told wrong says is a command that tries it again.
RUNS ?= 100
SEED ?= 1

faults: $(STAMP)
	$(NEWER) PYTHONPATH=tests $(BIN)/python -m faults --runs $(RUNS) --seed $(SEED) $(FAULTS_ARGS)

MINUTES ?= 60

soak: $(STAMP)
	mkdir -p build
	$(BIN)/python benchmarks/soak.py --minutes $(MINUTES) --svg build/soak.svg $(SOAK_ARGS)

# A second, newer QEMU is unpacked if none is named; where that fails, what needs it says so.
NEWER = MULTIFD_QEMU_NEW="$${MULTIFD_QEMU_NEW:-$$(tests/interop/newer-qemu.sh)}"

interop: $(STAMP)
	$(NEWER) $(BIN)/python -m pytest tests/interop --every $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(STAMP)
	$(BIN)/sphinx-build --fail-on-warning --quiet -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: $(STAMP)
	$(NEWER) PYTHONPATH=tests $(BIN)/python benchmarks/table.py
	$(BIN)/python benchmarks/where.py
	$(BIN)/python benchmarks/methods.py
	$(BIN)/python benchmarks/qpl_batch.py
	$(NEWER) PYTHONPATH=tests $(BIN)/python benchmarks/compare.py
	$(NEWER) PYTHONPATH=tests $(BIN)/python benchmarks/qemu.py
	$(BIN)/python benchmarks/live.py cost

dist: $(STAMP)
	rm -rf dist
	$(BIN)/python .ci/dist.py dist

# In clean environments, by the oldest and the newest of what is needed, by each Python that is here.
check-dist: dist
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	MULTIFD_DIST=dist $(BIN)/python -m pytest tests/packages -rs -n 2 --dist loadfile -o faulthandler_timeout=600 $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) .qemu build dist docs/_build *.egg-info
