"""Which tests take the most CPU, their fixtures and the processes that they start included.

``make test ARGS="-p datalake_assets_tests.cpu"`` prints the most expensive tests and files after the run, and
``--cpu-to FILE`` writes all of them down. CPU seconds say the same on a busy machine as on a quiet one; what a test
waits for is in ``--durations``. The modules that a process imports first are in the test that needs them first.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest

_SHOWN = 30


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cpu-to", metavar="FILE", help="write the CPU seconds of each test's phases as tab-separated text"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Meter(), "cpu meter")


class _Meter:
    def __init__(self) -> None:
        self._before = _cpu_s()
        self._phases: Counter[tuple[str, str]] = Counter()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        now = _cpu_s()
        # of processes that were killed with their parent nobody is told what they used; until now they were counted
        report.cpu_s = max(0.0, now - self._before)  # type: ignore[attr-defined]  # reports take more
        self._before = now
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._phases[report.nodeid, report.when or ""] += getattr(report, "cpu_s", 0)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
        tests: Counter[str] = Counter()
        files: Counter[str] = Counter()
        for (test, _), cpu_s in self._phases.items():
            tests[test] += cpu_s
            files[test.partition("::")[0]] += cpu_s
        for what, found in (("tests", tests), ("files", files)):
            terminalreporter.section(f"{what} by CPU seconds, of {found.total():.0f}")
            for name, cpu_s in found.most_common(_SHOWN):
                terminalreporter.write_line(f"{cpu_s:7.2f}  {name}")
        if path := config.getoption("--cpu-to"):
            lines = [f"{cpu_s:.3f}\t{when}\t{test}\n" for (test, when), cpu_s in self._phases.most_common()]
            Path(path).write_text("".join(lines))


def _cpu_s() -> float:
    """What this process and all that it started have used until now, whether they have ended or not."""
    own = os.times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in psutil.Process().children(recursive=True):
        try:
            total += sum(child.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total
