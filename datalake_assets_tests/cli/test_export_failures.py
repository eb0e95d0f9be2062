"""`datalake export` where it cannot work: one line per feed, the right exit code, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from datalake_assets.cli.export import ExportRequest, _Children
from datalake_assets.errors import ConfigError
from datalake_assets.feed import Feed
from datalake_assets.sources.ksqldb.declaration import KsqlDBSource

DOWN = "http://127.0.0.1:9"


def _feed(name: str, kind: str = "stream", **changes: object) -> Feed:
    return Feed(name=name, kind=kind, source=KsqlDBSource(object=name.upper()), **changes)  # type: ignore[arg-type]


@pytest.fixture
def feeds(registry) -> None:
    """A stream and a table."""
    registry.add(_feed("orders"))
    registry.add(_feed("accounts", "table"))


def test_export_of_a_lake_without_feeds_says_what_to_do(run, lake):
    result = run("export", "--all")
    line = f"Error: {lake} has no feeds; add some with 'datalake feeds add', or see 'datalake demo'\n"
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", line)


@pytest.mark.parametrize(
    ("option", "name", "right"), [("--table", "orders", "stream"), ("--stream", "accounts", "table")]
)
def test_export_by_the_wrong_kind_names_the_right_one(run, feeds, option, name, right):
    result = run("export", option, name)
    assert result.exit_code == 1
    assert result.stderr == f"Error: feed {name!r} is a {right}; export it with --{right} {name}\n"


def test_export_without_a_server_names_the_setting(run, feeds, lake):
    result = run("export", "--all")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "Error: no ksqlDB server to read from: set DATALAKE_KSQLDB_URL (only demo lakes read the embedded server)\n"
    )


@pytest.mark.parametrize(
    ("between", "message"),
    [
        ("2025-01-01", "--range '2025-01-01' is not written as A..B, like 2025-01-01..2025-01-31"),
        ("..2025-01-01", "--range '..2025-01-01' is not written as A..B, like 2025-01-01..2025-01-31"),
        ("2025-01-02..2025-01-01", "--range '2025-01-02..2025-01-01' ends before it begins"),
        ("2025-01..2025-02", "'2025-01' is not a partition by day; write it like '2025-01-15'"),
    ],
)
def test_a_bad_range_is_one_line(run, feeds, between, message):
    result = run("export", "--stream", "orders", "--range", between)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"Error: {message}\n")


def test_a_range_names_every_partition_between():
    days = ExportRequest(between="2025-01-30..2025-02-01").partitions(_feed("orders"))
    assert days == ("2025-01-30", "2025-01-31", "2025-02-01")
    assert ExportRequest(between="2025-01..2025-02").partitions(_feed("m", partition_by="month")) == (
        "2025-01",
        "2025-02",
    )
    assert ExportRequest(partition="v4").partitions(_feed("t", "table")) == ("v4",)
    assert ExportRequest().partitions(_feed("orders")) is None


def test_a_table_has_no_range():
    with pytest.raises(ConfigError, match="feed 't' is a table and has no range of days; name its --partition"):
        ExportRequest(between="v1..v2").partitions(_feed("t", "table"))


def test_a_child_gets_the_same_request():
    request = ExportRequest("k", None, allow_shrink=True, new_epoch=True)
    assert request.arguments() == ["--partition=k", "--allow-shrink", "--new-epoch"]


@pytest.mark.slow
def test_each_feed_fails_on_a_line_of_its_own_and_nothing_is_landed(run, feeds, lake):
    done = run("export", "--all", env={"DATALAKE_KSQLDB_URL": DOWN})
    assert (done.exit_code, done.stdout) == (1, "")
    cause = "connection refused; start the server, or correct DATALAKE_KSQLDB_URL"
    assert done.stderr.splitlines() == [
        f"Error: orders: {DOWN} ORDERS: {cause}",
        f"Error: accounts: {DOWN} ACCOUNTS: {cause}",
    ]
    assert not list(lake.rglob("*.parquet"))
    assert not (lake / "metadata").exists()


@pytest.mark.slow
def test_children_fail_alike_and_json_says_so(run, feeds):
    done = run("export", "--all", "--parallel", "2", "--json", env={"DATALAKE_KSQLDB_URL": DOWN})
    assert done.exit_code == 1
    outcomes = json.loads(done.stdout)["feeds"]
    assert [outcome["feed"] for outcome in outcomes] == ["orders", "accounts"]
    assert all("connection refused" in outcome["error"] and outcome["run_id"] for outcome in outcomes)
    assert len(done.stderr.splitlines()) == 2


@pytest.fixture
def silent_server() -> Iterator[socket.socket]:
    """A server that accepts connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(60)
        yield listener


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("--stream", "orders"), ("--all", "--parallel", "2")])
def test_ctrl_c_ends_an_export_with_130(feeds, silent_server, arguments):
    url = f"http://127.0.0.1:{silent_server.getsockname()[1]}"
    with subprocess.Popen(
        [sys.executable, "-m", "datalake_assets.cli", "export", *arguments],
        env=os.environ | {"DATALAKE_KSQLDB_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        connection, _ = silent_server.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (130, "", "Interrupted\n")


@pytest.mark.slow
def test_sigterm_ends_an_export_that_a_script_started_in_the_background(feeds, silent_server):
    """Its shell has SIGINT ignored by it, and Dagster gives SIGTERM the handler of that."""
    script = f"{sys.executable} -m datalake_assets.cli export --stream orders & echo $!; wait $!"
    environment = os.environ | {"DATALAKE_KSQLDB_URL": f"http://127.0.0.1:{silent_server.getsockname()[1]}"}
    with subprocess.Popen(
        ["/bin/sh", "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as shell:
        assert shell.stdout
        export = int(shell.stdout.readline())
        connection, _ = silent_server.accept()
        with connection:
            os.kill(export, signal.SIGTERM)
            output, errors = shell.communicate(timeout=60)
    assert (shell.returncode, output, errors) == (130, "", "Interrupted\n")


def test_child_that_is_being_started_at_ctrl_c_ends_too(monkeypatch):
    session = SimpleNamespace(settings=SimpleNamespace(lake="lake"), environment=dict(os.environ))
    children, started, popen = _Children(session, ExportRequest()), [], subprocess.Popen
    ctrl_c = threading.Thread(target=children.interrupt)

    def slow(_: object, **options: object) -> subprocess.Popen[str]:
        ctrl_c.start()
        ctrl_c.join(0.2)  # all the time it takes if it waits for nothing
        started.append(popen(["sleep", "30"], **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", slow)
    children.run(_feed("orders"))
    ctrl_c.join()

    assert [child.returncode for child in started] == [-signal.SIGTERM]
    assert children.run(_feed("accounts", "table")).error == "it was not started"
    assert len(started) == 1


@pytest.mark.parametrize("selection", [("--partition", "2025-01-01"), ("--range", "2025-01-01..2025-01-02")])
def test_a_selection_that_an_export_by_offsets_cannot_make_is_refused(run, feeds, selection):
    result = run("export", "--stream", "orders", *selection)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"Error: feed 'orders' is read by offsets: an export lands every new row, whatever its day, and {selection[0]}"
        " can select none of them; leave it out\n"
    )
