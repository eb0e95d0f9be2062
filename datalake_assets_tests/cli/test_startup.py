"""What commands must not load before they work; it was most of their cost (``python -m benchmarks startup``)."""

from __future__ import annotations

import gc
import json
import os
import platform
import subprocess
import sys

import pytest

from datalake_assets.parquet.native import load_kernel
from datalake_assets.short_process import (
    ALLOCATION,
    BLAS_THREADS,
    PLUGINS,
    prepare_long_process,
    prepare_short_process,
)
from datalake_assets_tests.lake.feeds import stream_feed, table_feed
from datalake_assets_tests.lake.many_files import append

#: Each costs between a tenth and a whole second, and none of these commands needs it.
HEAVY = (
    *("dagster", "pyarrow", "numpy", "pandas", "duckdb", "pydantic_settings", "yaml", "stamina", "asyncio", "ssl"),
    *("boto3", "obstore", "httpx", "jinja2", "matplotlib", "datalake_assets.parquet.rewrite"),
    *("datalake_assets.lake.export_commits", "datalake_assets.parquet.native"),
)
COMMANDS = (
    ("verify",),
    ("report",),
    ("report", "--rebuild"),
    ("repair",),
    ("compact", "s"),
)


@pytest.fixture
def quiet(lake_store, registry, monkeypatch):
    """A lake without quarantine, in which nothing is due, and no history of Dagster's."""
    monkeypatch.delenv("DAGSTER_HOME")
    append(lake_store, registry.add(stream_feed()), times=1)
    registry.add(table_feed())


def test_commands_load_nothing_heavy_where_nothing_is_to_merge(quiet):
    program = f"""
import json, sys
from datalake_assets.cli.app import app
loaded = {{}}
for command in {COMMANDS!r}:
    app(list(command), standalone_mode=False)
    loaded[" ".join(command)] = [name for name in {HEAVY!r} if name in sys.modules]
print(json.dumps(loaded), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=180, check=True)
    assert json.loads(done.stderr) == {" ".join(command): [] for command in COMMANDS}
    assert "nothing to compact in 3 partitions" in done.stdout


def test_looking_at_manifests_loads_nothing_of_plans_figures_and_verdicts(quiet):
    program = """
import sys
from datalake_assets.cli.app import app
app(["verify"], standalone_mode=False)
unneeded = ("core.compaction.plan", "core.report.figures", "core.rules", "core.verdicts", "lake.manifest_figures")
loaded = [name for name in unneeded if f"datalake_assets.{name}" in sys.modules]
print(*loaded, *{"difflib"}.intersection(sys.modules), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=180, check=True)
    assert done.stderr.strip() == ""


def test_a_merge_by_the_kernel_loads_none_of_arrows_functions(lake_store, registry, monkeypatch):
    if load_kernel() is None:
        pytest.skip("the kernel was not built")
    monkeypatch.delenv("DAGSTER_HOME")
    append(lake_store, registry.add(stream_feed()), times=3)
    program = """
import sys
from datalake_assets.cli.app import app
app(["compact", "s", "--force"], standalone_mode=False)
unneeded = ("pyarrow.compute", "pyarrow.dataset", "numpy.typing")
print(*(name for name in unneeded if name in sys.modules), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=180, check=True)
    assert "reencode (native)" in done.stdout
    assert done.stderr.strip() == ""


def test_a_command_begins_no_threads_for_matrices_unless_the_environment_says_so(monkeypatch):
    before = gc.get_threshold()
    try:
        for said, wanted in ((None, "1"), ("3", "3")):
            monkeypatch.delenv(BLAS_THREADS, raising=False)
            if said is not None:
                monkeypatch.setenv(BLAS_THREADS, said)
            prepare_short_process()
            assert os.environ[BLAS_THREADS] == wanted
    finally:
        gc.set_threshold(*before)


def test_pydantic_looks_for_plugins_in_processes_that_stay_or_where_the_environment_says_so(monkeypatch):
    before = gc.get_threshold()
    try:
        for said in (None, "logfire"):
            monkeypatch.setenv(PLUGINS, said or "")
            if said is None:
                monkeypatch.delenv(PLUGINS)
            prepare_short_process()
            assert os.environ[PLUGINS] == (said or "__all__")
            prepare_long_process()
            assert os.environ.get(PLUGINS) == said
    finally:
        gc.set_threshold(*before)


def test_a_command_ends_quietly_and_looks_for_no_garbage_then():
    """What DuckDB says of objects that are left when it ends would stand on stderr."""
    program = """
import gc, sys
from datalake_assets.short_process import prepare_short_process
prepare_short_process()
prepare_short_process()
if "duckdb" in sys.argv:
    import duckdb
    duckdb.connect().execute("SELECT 1").fetchall()
gc.callbacks.append(lambda phase, info: print("looked", gc.get_freeze_count(), file=sys.__stdout__, flush=True))
class Kept: pass
kept = Kept()
kept.itself = kept
"""
    for what, is_frozen in (("nothing", True), ("duckdb", False)):
        command = [sys.executable, "-c", program, what]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert done.stderr == ""
        counts = [int(line.split()[1]) for line in done.stdout.splitlines()]
        assert counts
        assert all(count > 1000 for count in counts) is is_frozen


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries decide by themselves")
@pytest.mark.parametrize("stays", [False, True])
def test_memory_that_was_freed_is_kept_where_the_process_ends_soon(stays):
    program = f"""
import ctypes, resource
from datalake_assets.short_process import keep_freed_memory, prepare_long_process, prepare_short_process
prepare_short_process()
if {stays}:
    prepare_long_process()
keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
if {stays}:
    libc.mallopt(-3, 16 << 20)  # where pieces come from is the same, and what becomes of them is not
for number in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [libc.malloc(14 << 20) for _ in range(2)]
    for piece in held:
        ctypes.memset(piece, 1, 14 << 20)
    for piece in held:
        libc.free(piece)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    command = [sys.executable, "-c", program]
    env = {name: value for name, value in os.environ.items() if name not in ALLOCATION}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True, env=env)
    cleared = int(done.stdout)  # pages, each of 4 KiB, or of 2 MiB
    assert (cleared > 8) is stays
