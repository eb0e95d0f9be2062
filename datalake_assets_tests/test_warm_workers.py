"""pytest-xdist's processes are forked from one that has imported what they collect, as long as there is one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import execnet
import pytest

from datalake_assets_tests.processes.warm_processes import IS_COLD
from datalake_assets_tests.processes.warm_workers import forked

pytestmark = pytest.mark.skipif(IS_COLD, reason="Python starts all processes")

#: Who it is, whose child, who imported the tests, what is in the environment, and the standard streams.
TOLD = """
import os, sys
imported = getattr(sys.modules.get("test_of_a_run"), "PID", None)
streams = [os.path.realpath(f"/proc/self/fd/{number}") for number in (0, 1)]
channel.send([os.getpid(), os.getppid(), imported, os.environ["GIVEN"], streams])
"""


@pytest.fixture
def tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_of_a_run.py").write_text("import os\nPID = os.getpid()\ndef test(): pass\n")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("GIVEN", "ü")
    return tmp_path


def _start_two(tests: Path) -> list[list[Any]]:
    """What two tell that execnet starts as it does pytest-xdist's; both have ended."""
    with forked([str(tests)]):
        group = execnet.Group(execmodel="main_thread_only")
        try:
            return [group.makegateway("popen").remote_exec(TOLD).receive(120) for _ in range(2)]
        finally:
            group.terminate(60)


def test_they_are_children_of_whoever_starts_them_and_have_the_tests_imported(tests: Path) -> None:
    first, second = _start_two(tests)

    (own, parent, imported_by, *given), (other, other_parent, *told) = first, second
    assert parent == other_parent == os.getpid()
    assert [imported_by, *given] == told
    assert given == ["ü", [os.devnull] * 2]
    assert imported_by not in {None, own, other, os.getpid()}
    assert own != other
    assert not any(Path(f"/proc/{pid}").exists() for pid in (own, other, imported_by))


def test_python_starts_them_where_importing_ends_a_process(tests: Path) -> None:
    (tests / "conftest.py").write_text("import os\nos._exit(3)\n")

    (own, parent, imported_by, *given), (other, *_) = _start_two(tests)

    assert own != other
    assert (parent, imported_by, given) == (os.getpid(), None, ["ü", [os.devnull] * 2])
