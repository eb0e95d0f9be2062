"""``datalake run``: passes land what waits, failures are told and tried again, SIGTERM ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from datalake_assets.cli import run as run_command
from datalake_assets.errors import FeedNotFound, SourceUnavailable
from datalake_assets_tests.cli.test_queues import FIELDS
from datalake_assets_tests.sources.sqs.conftest import bodies, landed

pytestmark = pytest.mark.xdist_group("sqs")


@pytest.fixture
def queue(sqs_server, monkeypatch, run):
    for name, value in sqs_server.environment().items():
        monkeypatch.setenv(name, value)
    queue = sqs_server.queue()
    added = run(
        "feeds", "add", "--name", "trades", "--kind", "stream", "--source", "sqs", "--queue", queue.name, *FIELDS
    )
    assert added.exit_code == 0
    return queue


def test_a_pass_exports_what_waits_and_nothing_else(run, lake, queue, registry, lake_store):
    queue.send(bodies(range(5)))

    first = run("run", "trades", "--passes", "1")
    second = run("run", "--all", "--passes", "1")

    assert (first.exit_code, "streams/trades" in first.stdout) == (0, True), first.stderr
    assert (second.exit_code, second.stdout) == (0, "")
    assert sorted(landed(lake_store, registry.get("trades"))) == list(range(5))


def test_a_pass_that_fails_is_told_and_the_next_one_tries_again(run, lake, queue, monkeypatch):
    monkeypatch.setenv("DATALAKE_SQS_ENDPOINT", "http://127.0.0.1:9")
    result = run("run", "trades", "--passes", "2", "--every", "0.01")
    assert result.exit_code == 0
    assert result.stderr.count("cannot be reached") == 2


@pytest.mark.usefixtures("lake")
def test_a_feed_that_fails_holds_no_other_up(run, queue, registry, lake_store, monkeypatch):
    """Nor does one that is not there any more."""
    for name in ("away", "gone"):
        run("feeds", "add", "--name", name, "--kind", "stream", "--source", "sqs", "--queue", queue.name, *FIELDS)
    queue.send(bodies(range(5)))
    right, errors = run_command._waits, iter([SourceUnavailable("sqs", "is away"), ZeroDivisionError("oh")])

    def waits(session, feed):
        if feed.name == "away":
            with suppress(FeedNotFound):
                registry.archive("gone")
            raise next(errors)
        return right(session, feed)

    monkeypatch.setattr(run_command, "_waits", waits)
    result = run("run", "away", "trades", "gone", "--passes", "2", "--every", "0.01")
    assert result.exit_code == 0
    for told in ("is away", "streams/away: unexpected ZeroDivisionError: oh", "feed 'gone' is archived"):
        assert told in result.stderr
    assert sorted(landed(lake_store, registry.get("trades"))) == list(range(5))


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        ((), 2, "give NAME..., or --all"),
        (("x", "--all"), 2, "give NAME..., or --all"),
        (("nothing",), 1, "does not exist"),
    ],
)
def test_what_cannot_be_run_is_told_at_once(run, lake, arguments, code, reason):
    result = run("run", *arguments)
    assert (result.exit_code, reason in result.stderr) == (code, True)


@pytest.fixture
def interrupts(request):
    """How this process, and those that it starts, take SIGINT: a shell has it ignored by what it starts behind it."""
    before = signal.signal(signal.SIGINT, getattr(request, "param", signal.default_int_handler))
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
@pytest.mark.parametrize(
    "interrupts", [signal.default_int_handler, signal.SIG_IGN], ids=["shown", "behind"], indirect=True
)
def test_sigterm_ends_it(lake, queue):
    command = [sys.executable, "-m", "datalake_assets.cli", "run", "trades", "--every", "0.2"]
    with subprocess.Popen(command, env=os.environ, stdout=subprocess.PIPE, text=True) as process:
        queue.send(bodies(range(3)))
        assert process.stdout
        try:
            while "trades" not in process.stdout.readline():
                assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0
        finally:
            process.kill()
    assert queue.left == (0, 0)


@pytest.mark.usefixtures("interrupts")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_that_an_export_swallowed_ends_it_after_the_pass(lake, run, monkeypatch, sent, code):
    passes = []

    def swallowing(*_):
        passes.append(sent)
        with suppress(KeyboardInterrupt):
            signal.raise_signal(sent)

    monkeypatch.setattr("datalake_assets.cli.run._pass", swallowing)
    result = run("run", "--all", "--passes", "3", "--every", "20")
    assert (result.exit_code, len(passes)) == (code, 1)
