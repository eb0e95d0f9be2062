"""kill -9 of a process that does nothing but compare-and-swap: what is left is whole, and never older than before."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from datalake_assets.lake.store.base import Store
from datalake_assets_tests.processes.warm_processes import FORKED

ROUNDS = 10
SWAPS = 15
LINES = 1000  # the number again and again: a torn body would hold two
KEY = "control/counter"

LOOP = f"""
import sys
from datalake_assets.lake.store import open_store
store = open_store(sys.argv[1])
body, etag = store.get({KEY!r})
number = int(body.split()[0])
while True:
    number += 1
    etag = store.swap({KEY!r}, b"%019d\\n" % number * {LINES}, etag=etag)
    print(number, flush=True)
"""


@pytest.mark.slow
def test_kill_in_a_swap_loop_never_tears_or_regresses(local_store: Store) -> None:
    local_store.create(KEY, b"%019d\n" % 0 * LINES)

    for _ in range(ROUNDS):
        with subprocess.Popen(
            [sys.executable, "-c", FORKED + LOOP, local_store.uri], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout
            acknowledged = [int(process.stdout.readline()) for _ in range(SWAPS)][-1]
            process.send_signal(signal.SIGKILL)  # at whatever it is doing
            acknowledged = max([acknowledged, *(int(line) for line in process.stdout if line.endswith(b"\n"))])

        body, _ = local_store.get(KEY)
        [number] = {int(line) for line in body.splitlines()}
        assert len(body) == 20 * LINES
        assert number in {acknowledged, acknowledged + 1}  # the last one's answer may have been lost

    assert [info.key for info in local_store.list("")] == [KEY]


@pytest.mark.slow
def test_kill_while_staging_leaves_nothing_visible(local_store: Store) -> None:
    code = """
import sys
from datalake_assets.lake.store import open_store
sink = open_store(sys.argv[1]).stage("streams/a.parquet")
while True:
    sink.write(b"x" * 100_000)
    print("wrote", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", FORKED + code, local_store.uri], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline()
        process.kill()

    assert list(local_store.list("")) == []
    [stale] = local_store.list_staged("")
    local_store.discard_stale(stale)
    assert list(local_store.list_staged("")) == []
