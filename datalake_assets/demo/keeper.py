"""Runs a server, and stops it when whoever started this process is gone.

``python keeper.py [--unlink PATH]... -- COMMAND...``: prints the server's pid, then waits for standard input to end.
The starter holds the other end of that pipe, so even its kill -9 ends it. (Linux's parent-death signal follows the
*thread* that started the child, and macOS has none.) Then: SIGTERM, some seconds, SIGKILL, and the named files are
unlinked.

Standard library only, and run by path: it costs nothing but a bare interpreter.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

__all__ = ["GRACE_S", "main"]

GRACE_S = 10.0  # one SIGTERM to the S3 server was seen to take 27 s; its data survives SIGKILL
POLL_S = 0.1


def main(arguments: list[str] | None = None) -> int:
    """Run the command until it ends or standard input does; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unlink", action="append", default=[], type=Path)
    parser.add_argument("--grace-s", default=GRACE_S, type=float)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = subprocess.Popen(options.command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    try:
        print(server.pid, flush=True)  # noqa: T201  this is the answer
        while server.poll() is None:
            if select.select([sys.stdin], [], [], POLL_S)[0] and not os.read(sys.stdin.fileno(), 1):
                break
    finally:
        status = _stop(server, options.grace_s)
        for path in options.unlink:
            with contextlib.suppress(OSError):
                path.unlink()
    return status


def _stop(server: subprocess.Popen[bytes], grace_s: float) -> int:
    server.terminate()
    try:
        return server.wait(grace_s)
    except subprocess.TimeoutExpired:
        server.kill()
        return server.wait()


if __name__ == "__main__":
    sys.exit(main())
