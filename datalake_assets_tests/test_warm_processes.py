"""Processes that are forked from a waiting one are those that Python starts, but for what they have imported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from datalake_assets.lake.sql_process import _started
from datalake_assets_tests.processes import warm_processes
from datalake_assets_tests.processes.warm_processes import COLD

pytestmark = pytest.mark.skipif(
    bool(os.environ.get(COLD)) or not sys.platform.startswith("linux"), reason="Python starts all processes"
)

#: Says what it is and has, and ends as it is told to on standard input.
PROGRAM = """
import json, os, signal, sys
told = sys.stdin.readline().strip()
what = {
    "argv": sys.argv, "name": __name__, "path": sys.path[0], "folder": os.getcwd(), "parent": os.getppid(),
    "variables": {name: value for name, value in os.environ.items() if name not in NUMPYS},
    "open": sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")),
    "leads": [os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()],
    "signals": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "encodings": [sys.stdin.encoding, sys.stdout.encoding, sys.stderr.encoding, sys.stderr.errors],
    "buffered": [[each.line_buffering, each.write_through] for each in (sys.stdin, sys.stdout, sys.stderr)],
}
if "--parallel" in sys.argv:
    import subprocess
    command = [sys.executable, sys.argv[0], *sys.argv[2:]]
    inner = json.loads(subprocess.run(command, input="", capture_output=True, text=True, check=True).stdout)
    what["inner"] = [inner["argv"], inner["parent"] == os.getpid(), inner["imported"], inner.get("inner")]
what["imported"] = "dagster" in sys.modules
print(json.dumps(what))
print("error", file=sys.stderr)
exec(told)
"""


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM.replace("NUMPYS", '{"OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"}'))
    return str(path)


def _command(program: str, *arguments: str, is_forked: bool) -> list[str]:
    # with an option of Python's it is not one of those that are known
    return [sys.executable, *([] if is_forked else ["-B"]), program, *arguments]


def _start(program: str, *arguments: str, is_forked: bool, told: str = "", **options: object):
    command = _command(program, *arguments, is_forked=is_forked)
    done = subprocess.run(command, input=told, capture_output=True, text=True, check=False, timeout=180, **options)
    return done, json.loads(done.stdout or "null")


@pytest.fixture(autouse=True)
def _waiting(program: str) -> None:
    """One waits for the second process."""
    for _ in range(2):
        assert _start(program, is_forked=True)[0].returncode == 0


def test_a_process_is_as_it_was_asked_for(program: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    read, write = os.pipe()
    options = {
        "cwd": tmp_path / "folder",
        "env": os.environ | {"ÄÖ": "€ \udcff", "TZ": "Asia/Tokyo"},
        "pass_fds": [write],
        "start_new_session": True,
    }
    told = f"os.write({write}, b'x')"
    (cold, without), (warm, told_of) = (
        _start(program, "a b", "ü", is_forked=is_forked, told=told, **options) for is_forked in (False, True)
    )
    os.close(write)

    assert os.read(read, 9) == b"xx"
    os.close(read)
    assert (without.pop("imported"), told_of.pop("imported")) == (False, True)
    assert told_of == without
    assert told_of["parent"] == os.getpid()
    assert (warm.returncode, warm.stderr) == (cold.returncode, cold.stderr) == (0, "error\n")


@pytest.mark.parametrize(
    ("told", "code", "said"),
    [
        ("sys.exit(3)", 3, ""),
        ("sys.exit('no')", 1, "no\n"),
        ("raise ValueError('no')", 1, "ValueError: no\n"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt\n"),
        ("import atexit; atexit.register(print, 'end', file=sys.stderr)", 0, "end\n"),
        ("import signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
    ],
)
def test_a_process_ends_as_python_ends_it(program: str, told: str, code: int, said: str) -> None:
    (cold, _), (warm, _) = (_start(program, is_forked=is_forked, told=told) for is_forked in (False, True))

    assert (warm.returncode, cold.returncode) == (code, code)
    for done in (warm, cold):
        assert done.stderr.startswith("error\n")
        assert done.stderr.endswith(said)


def test_a_process_ignores_what_the_one_that_asked_for_it_ignores(program: str) -> None:
    """Not what the first one did, for which the waiting one was started: Ctrl-C was lost on all that came later."""
    ignored, blocked = [signal.SIGINT, signal.SIGHUP], [signal.SIGUSR1]
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        (_, cold), (_, warm) = (_start(program, is_forked=is_forked) for is_forked in (False, True))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
    _, after = _start(program, is_forked=True)

    assert [warm["signals"], warm["blocked"]] == [cold["signals"], cold["blocked"]]
    assert warm["blocked"] == [signal.SIGUSR1]
    assert [warm["signals"], warm["blocked"]] != [after["signals"], after["blocked"]]


def test_a_process_that_is_killed_is_its_own(program: str) -> None:
    command = _command(program, is_forked=True)
    with subprocess.Popen(command, stdin=subprocess.PIPE, process_group=0) as process:
        assert Path(f"/proc/{process.pid}").exists()
        os.killpg(process.pid, signal.SIGKILL)

        assert process.wait(60) == -signal.SIGKILL
    assert not Path(f"/proc/{process.pid}").exists()


def test_a_process_that_starts_others_is_their_parent(program: str) -> None:
    done, told = _start(program, "--parallel", "--parallel", is_forked=True)

    assert done.returncode == 0
    assert told["inner"] == [[program, "--parallel"], True, True, [[program], True, True, None]]


def test_a_process_of_queries_is_forked_though_it_has_an_import_path_of_its_own() -> None:
    waiting = _started()
    with waiting.process as process, waiting.control:
        command = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        process.stdin.close()

    assert Path(warm_processes.__file__).name in command.decode()
    assert process.returncode == 0
