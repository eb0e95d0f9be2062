"""Forks pytest-xdist's processes from one that has imported all tests: importing was most of what each began with.

pytest-xdist starts a Python for each of them, by execnet. With `forked`, these are children of the one who starts them
as ever, but forked from a process that has collected the same tests before. They take over what that collected
(`take_over`), whose memory they share. What they run, and how they end, is pytest-xdist's.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from execnet.gateway_io import popen_bootstrapline
from hypothesis.internal.entropy import deterministic_PRNG

from datalake_assets_tests.processes.warm_processes import IS_COLD, SINGLE, Hooks, Waiting, fork_when_asked

__all__ = ["forked", "take_over"]

_PROGRAM = f"import json, sys; sys.path[:] = json.loads(sys.argv[2]); from {__name__} import main; main()"
_READY = b"+"
#: What the process that this one is forked from has collected: nothing in any other.
_collected: list[pytest.Session] = []


@contextmanager
def forked(arguments: Sequence[str]) -> Iterator[None]:
    """Has pytest-xdist's processes forked from one that collects what pytest's arguments name; waits until it has.

    Where it has ended instead, Python starts them, and they say what it could not import.
    """
    if IS_COLD:
        yield
        return
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), json.dumps(sys.path), *arguments],
            env={**os.environ, **SINGLE},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        theirs.close()
        waiting = Waiting(ours, process)
        if ours.recv(1) != _READY:
            waiting.close()
            yield
            return
        hooks = Hooks(begun_at=sys.maxsize, waiting=(waiting, os.environ), knows=_what_runs)
        hooks.install()
        try:
            yield
        finally:
            hooks.remove()


def _what_runs(args: Sequence[str]) -> dict[str, Any] | None:
    """What a command line has Python run, if it is execnet's."""
    if args[0] == sys.executable and list(args[-2:]) == ["-c", popen_bootstrapline]:
        return {"code": popen_bootstrapline, "argv": ["-c"], "nests": False}
    return None


def take_over(session: pytest.Session) -> bool:
    """Gives a session the tests that were collected before the fork, which takes a second of the five that it took.

    pytest has no way to do so, so that this knows what a session, its nodes and its fixtures hold of each other.
    """
    if not _collected:
        return False
    before, config = _collected.pop(), session.config
    plugins, known = config.pluginmanager, before.config.pluginmanager
    for module in known._conftest_plugins - plugins._conftest_plugins:
        plugins.register(module, known.get_name(module))
    plugins._conftest_plugins.update(known._conftest_plugins)
    plugins._dirpath2confmods.update(known._dirpath2confmods)
    fixtures = before._fixturemanager
    plugins.unregister(session._fixturemanager)
    plugins.register(fixtures, "funcmanage")
    nodes = {node for item in before.items for node in item.listchain()}
    for holder in (before, fixtures, *nodes):
        holder.config = config
    before._setupstate, session._fixturemanager, session.items = session._setupstate, fixtures, before.items
    session.testscollected = len(session.items)
    config.hook.pytest_collection_modifyitems(session=session, config=config, items=session.items)
    config.hook.pytest_collection_finish(session=session)
    return True


class _Silent:
    """Has no plugin write a summary of nothing, to a file that an option names."""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        _collected.append(session)
        plugins = session.config.pluginmanager
        plugins.unregister(plugins.get_plugin("terminalreporter"))

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        gc.freeze()  # pytest's last garbage collections would look through all modules: two seconds of waiting


def main() -> None:
    """Collects what the arguments name, says so, and forks."""
    number, _, *arguments = sys.argv[1:]
    connection = socket.socket(fileno=int(number))
    pytest.main([*arguments, "--collect-only", "-qq"], plugins=[_Silent()])
    with deterministic_PRNG():  # Hypothesis looks, once in a process, for who else holds what draws numbers: everywhere
        pass
    gc.freeze()
    connection.sendall(_READY)
    fork_when_asked(connection)
