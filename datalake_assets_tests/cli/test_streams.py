"""Where output goes wrong: never a traceback, never exit 1 for work that was done, and never 0 for a lost answer."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from datalake_assets.feed import Feed, parse_feed
from datalake_assets_tests.processes.warm_processes import COLD

#: Work that takes little to start.
ARCHIVE = "feeds archive notes"
FULL = "No space left on device"


@pytest.fixture
def feed(registry) -> Feed:
    source = {"type": "ksqldb", "object": "NOTES"}
    document = {"name": "notes", "kind": "table", "source": source, "description": "é→日本🐧"}
    return registry.add(parse_feed(json.dumps(document)))


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a line in which ``datalake`` is the command."""
    line = command.replace("datalake", f"{sys.executable} -m datalake_assets.cli", 1)
    return subprocess.run(
        ["/bin/sh", "-c", line], env=os.environ | environment, capture_output=True, text=True, timeout=180, check=False
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8", "utf-16"])
def test_a_document_is_json_in_every_encoding(run_process, feed, encoding):
    line = [sys.executable, "-m", "datalake_assets.cli", "feeds", "show", "notes"]
    done = subprocess.run(line, env=os.environ | {"PYTHONIOENCODING": encoding}, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    # click writes UTF-8 where the stream is ASCII
    assert json.loads(done.stdout.decode("utf-8" if encoding == "ascii" else encoding)) == feed.model_dump(mode="json")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_line_is_written_in_every_encoding(lake, encoding):
    done = shell("datalake feeds list --lake 'lake-日本'", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    assert "unexpected" not in done.stderr
    assert done.stderr.startswith("Error: ")


@pytest.mark.parametrize("command", ["feeds show notes", "feeds list", "verify", "--help", "feeds list --json"])
def test_an_answer_that_is_lost_is_an_error(feed, command):
    done = shell(f"datalake {command} > /dev/full")
    assert (done.returncode, done.stderr) == (1, f"Error: the answer could not be written: {FULL}\n")


@pytest.mark.parametrize("out", ["> /dev/full", ">&-", "> /dev/full 2> /dev/full", ">&- 2>&-", "2>&-", "<&- >&- 2>&-"])
def test_work_that_is_done_is_done(feed, lake, out):
    done = shell(f"datalake {ARCHIVE} {out}")
    assert done.returncode == 0
    assert not (lake / "feeds" / "active" / "notes.json").exists()
    reported = f"what was done could not be reported: {FULL}\n" if out == "> /dev/full" else ""
    assert done.stderr == reported


@pytest.mark.parametrize("out", ["2>&-", "2> /dev/full", ">&- 2>&-"])
def test_an_error_that_cannot_be_written_is_an_error_all_the_same(lake, out):
    assert shell(f"datalake feeds show nobody {out}").returncode == 1


def test_work_goes_on_when_its_reader_has_gone(feed, lake):
    """Its lines could not be written any more, which is no reason to stop."""
    done = shell(f"(datalake {ARCHIVE}; echo $? > status) | true")
    assert (done.stderr, Path("status").read_text()) == ("", "0\n")
    assert not (lake / "feeds" / "active" / "notes.json").exists()


def test_a_closed_descriptor_is_given_to_no_file(lake):
    """Else the next file that is opened is standard error, and remarks are written into it."""
    script = (
        "import os, sys; from datalake_assets.cli.output import Streams; Streams();"
        "sys.exit(0 if os.open('x', os.O_CREAT) > 2 else 1)"
    )
    done = subprocess.run(["/bin/sh", "-c", f'{sys.executable} -c "{script}" <&- >&- 2>&-'], check=False)
    assert done.returncode == 0


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def children(pid: int) -> set[int]:
    return {int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()} | {
        int(each) for task in Path(f"/proc/{pid}/task").iterdir() for each in (task / "children").read_text().split()
    }


def wait_until(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_children_of_parallel_end_with_their_parent(lake, registry, silent_server, number):
    for name in ("a", "b"):
        source = {"type": "ksqldb", "object": name.upper()}
        registry.add(parse_feed(json.dumps({"name": name, "kind": "table", "source": source})))
    line = [sys.executable, "-m", "datalake_assets.cli", "export", "--all", "--parallel", "2"]
    environment = os.environ | {"DATALAKE_KSQLDB_URL": silent_server, COLD: "1"}  # its children are counted
    with subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as parent:
        assert wait_until(lambda: len(children(parent.pid)) == 2, 60)
        started = children(parent.pid)
        parent.send_signal(number)
        parent.wait(60)
    gone = wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started), 60)
    assert gone
