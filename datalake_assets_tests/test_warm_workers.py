"""pytest-xdist's processes are forked from one that has imported what they collect, as long as there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
#: What a run of tests that were collected before gives, and one that collects them itself.
RUN_TWICE = """
import json, os, sys
import pytest
from datalake_assets_tests.processes import warm_workers

class Run:
    def __init__(self, collect):
        self.outcomes, self._collect = [], collect

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self, session):
        if self._collect is not None:
            session.perform_collect = lambda: self._collect(session)
        return (yield)

    def pytest_runtest_logreport(self, report):
        self.outcomes.append([report.nodeid, report.when, report.outcome, report.capstdout.splitlines()])

folder, real, sys.stdout = sys.argv[1], sys.stdout, open(os.devnull, "w")
pytest.main([folder, "--collect-only", "-qq"], plugins=[warm_workers._Silent()])
told = []
for collect in (warm_workers.take_over, None):
    run = Run(collect)
    status = pytest.main([folder, "-o", f"key={len(told)}"], plugins=[run])
    told.append([int(status), run.outcomes, int(os.environ["COLLECTED"])])
json.dump(told, real)
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


def test_tests_that_were_collected_before_run_as_if_they_were_collected_again(tests: Path) -> None:
    (tests / "pytest.ini").write_text("[pytest]\nusefixtures = made\n")
    (tests / "conftest.py").write_text("""
import os
import pytest

def pytest_addoption(parser):
    parser.addini("key", "which run this is")

def pytest_generate_tests(metafunc):
    os.environ["COLLECTED"] = str(int(os.environ.get("COLLECTED", 0)) + 1)

@pytest.fixture(scope="session")
def made(pytestconfig, request):
    assert request.session.config is pytestconfig
    print("made")
    yield "above"
    print("unmade")
""")
    (tests / "inner").mkdir()
    for folder in (tests, tests / "inner"):
        (folder / "__init__.py").touch()
    (tests / "inner" / "conftest.py").write_text("""
import pytest

def pytest_runtest_setup(item):
    print("inner", item.config.getini("key"))

@pytest.fixture
def made(made):
    return f"{made}, within"
""")
    (tests / "inner" / "test_inner.py").write_text("""
import pytest

class TestInner:
    @pytest.mark.parametrize("number", [1, 2])
    def test(self, number, request, tmp_path):
        assert request.getfixturevalue("made") == "above, within"
        assert number == 1

    @pytest.mark.skip
    def test_left_out(self): pass
""")

    told = subprocess.run([sys.executable, "-c", RUN_TWICE, tests], stdout=subprocess.PIPE, check=True).stdout

    (status, outcomes, collected), (again, expected, later) = json.loads(told)
    assert outcomes[0] == ["inner/test_inner.py::TestInner::test[1]", "setup", "passed", ["inner 0", "made"]]
    assert [[*of, ["inner 0" if line == "inner 1" else line for line in said]] for *of, said in expected] == outcomes
    assert status == again == 1
    assert [outcome for _, when, outcome, _ in outcomes if when == "call"] == ["passed", "failed", "passed"]
    assert (collected, later) == (3, 6)
