"""Files that a person names, in an option or a setting: read whole, but never for ever.

A name may be that of a device that has no end, of a pipe that nobody writes into, or of a file that was meant for
something else.
"""

from __future__ import annotations

import os
import select
import stat
import time
from pathlib import Path
from typing import BinaryIO, Final

from datalake_assets.errors import ConfigError

__all__ = ["MOST_BYTES", "read_named_file", "read_stream", "refuse_special_file"]

#: The largest document that a person may name: thousands of times the largest that is known.
MOST_BYTES: Final = 16 << 20
#: Seconds that a pipe may take.
_PIPE_S = 60.0
_PIECE_BYTES = 1 << 20


def read_named_file(file: str | os.PathLike[str], *, most_bytes: int = MOST_BYTES) -> bytes:
    """A file, or what comes out of a pipe like ``<(command)``, whole.

    Args:
        file: Its path.
        most_bytes: As long as it may be.

    Raises:
        OSError: It cannot be read.
        ConfigError: It is longer, or a pipe that does not end.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # else a pipe is waited for at once
    try:
        is_pipe = not stat.S_ISREG(os.fstat(descriptor).st_mode)
        until, data = time.monotonic() + _PIPE_S, bytearray()
        while True:
            if is_pipe and not _is_ready(descriptor, until - time.monotonic()):
                raise ConfigError(f"{os.fspath(file)}: nobody has written all of it within {_PIPE_S:g} s; name a file")
            piece = os.read(descriptor, _PIECE_BYTES)
            if not piece:
                return bytes(data)
            data += piece
            _check_length(data, os.fspath(file), most_bytes)
    finally:
        os.close(descriptor)


def read_stream(stream: BinaryIO, name: str, *, most_bytes: int = MOST_BYTES) -> bytes:
    """What a person, or another program, writes into a stream that is open, whole.

    Raises:
        ConfigError: It is longer than ``most_bytes``.
    """
    data = stream.read(most_bytes + 1)
    _check_length(data, name, most_bytes)
    return data


def refuse_special_file(file: str | os.PathLike[str]) -> None:
    """Refuses what a library would read that cannot be told where to stop; what is not there it refuses by itself.

    Raises:
        ConfigError: It is a pipe, a socket or a device.
    """
    path = Path(file)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ConfigError(f"{path}: it is no regular file")


def _is_ready(descriptor: int, left_s: float) -> bool:
    """Whether there is more, or an end, within the time; a descriptor may be of any number, unlike for `select`."""
    if left_s <= 0:
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(1000 * left_s))


def _check_length(data: bytes | bytearray, name: str, most_bytes: int) -> None:
    if len(data) > most_bytes:
        raise ConfigError(f"{name}: it is longer than {most_bytes >> 20} MiB, which no such document is")
