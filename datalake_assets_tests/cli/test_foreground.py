"""What ``demo --ui`` runs ends with it, and so does whatever that started, however the end comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

#: Ignores SIGINT, as does what it starts: only the end of the whole group ends them.
STUBBORN = "trap '' INT; sh -c 'trap \"\" INT; sleep 300' & sleep 300"
PROGRAM = f"""
import os
from datalake_assets.cli.demo import run_in_foreground
print("up", flush=True)
run_in_foreground(["sh", "-c", {STUBBORN!r}], os.environ, grace_s=0.3)
"""
#: Is told to end while it starts what it runs, or what guards that.
EARLY = """
import os, signal, subprocess, sys
class Interrupted(subprocess.Popen):
    def __init__(self, command, **options):
        super().__init__(command, **options)
        if (command[0] == "sh") == (sys.argv[1] == "command"):
            signal.raise_signal(signal.SIGTERM)
subprocess.Popen = Interrupted
"""


def sleepers(mark: str) -> list[str]:
    """Processes that carry a mark in their environment."""
    found = []
    for each in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in each.read_bytes():
                found.append(each.parent.name)
        except OSError:
            continue
    return found


@pytest.mark.parametrize("ignored", [False, True], ids=["foreground", "background"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_nothing_stays_when_it_is_told_to_end(number, *, ignored):
    mark = f"FOREGROUND_TEST={os.getpid()}_{number}_{ignored}"
    name, _, value = mark.partition("=")

    def as_a_script_does() -> None:
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {name: value},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=as_a_script_does,  # noqa: PLW1509  no threads here
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        wait_until(lambda: len(sleepers(mark)) == 6)
        child.send_signal(number)
        child.wait(60)
    wait_until(lambda: not sleepers(mark))  # what was killed takes a moment to go


@pytest.mark.parametrize("started", ["command", "guard"])
def test_nothing_stays_when_it_is_told_to_end_while_it_starts(started):
    mark = f"FOREGROUND_TEST={os.getpid()}_{started}"
    name, _, value = mark.partition("=")
    command = [sys.executable, "-c", EARLY + PROGRAM, started]
    done = subprocess.run(
        command, env=os.environ | {name: value}, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "up\n", "")
    wait_until(lambda: not sleepers(mark))


def wait_until(condition) -> None:
    """Until then, for long enough on any machine: nothing here ends by itself before."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
