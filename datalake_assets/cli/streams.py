"""Where a command's output goes, whatever that is: a locale without UTF-8, a full disk, a reader that has gone.

An answer that could not be written is an error. Work that was done is done, whether or not it could be reported.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

__all__ = ["Streams", "work"]

_STDIN, _STDOUT, _STDERR = range(3)


class _Sink(io.RawIOBase):
    """A descriptor that never fails for what cannot be written.

    Attributes:
        lost: Why something could not be written; None if everything was.
    """

    def __init__(self, number: int, *, may_break: bool) -> None:
        self._number, self._may_break = number, may_break
        self.lost: OSError | None = None

    def write(self, data: bytes | memoryview, /) -> int:  # type: ignore[override]  # what buffers hand on
        """Writes some; pretends to, once it cannot."""
        try:
            return os.write(self._number, data) if self.lost is None else len(data)
        except OSError as error:
            if error.errno == errno.EPIPE and self._may_break and not _works:
                raise  # nobody reads the answer any more: it is not worth working out
            self.lost = error
            return len(data)

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self._number

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self._number)


class Streams:
    """Standard input and output of this process, made fit; for the life of the process."""

    def __init__(self) -> None:
        _open_missing()
        self._answer, self._remarks = _Sink(_STDOUT, may_break=True), _Sink(_STDERR, may_break=False)
        sys.stdout = _text(self._answer, sys.stdout)
        sys.stderr = _text(self._remarks, sys.stderr)
        if sys.stdin is None:
            sys.stdin = open(_STDIN, encoding="utf-8", closefd=False)  # noqa: SIM115  a descriptor, for good

    def close(self, status: int) -> int:
        """Writes what is held.

        Args:
            status: The command's exit code.

        Returns:
            The exit code, given what could be written: 1 where an answer was all that was asked for, and is lost.
        """
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # the reader had enough
            return status
        lost = self._answer.lost
        if lost is None or lost.errno == errno.EPIPE:
            return status
        if status == 0 and not _works:
            print(f"Error: the answer could not be written: {lost.strerror}", file=sys.stderr)  # noqa: T201  for people
            return 1
        print(f"what was done could not be reported: {lost.strerror}", file=sys.stderr)  # noqa: T201  for people
        return status


#: Whether the command changes something: what it did is then done, whether or not it can be reported.
_works: list[bool] = []


@contextmanager
def work() -> Iterator[None]:
    """While a command changes something; its exit code says whether that was done, and nothing else."""
    _works.append(True)
    yield


def _open_missing() -> None:
    """Opens closed descriptors on nothing: else the next file would get one, and remarks be written into it."""
    for number in (_STDIN, _STDOUT, _STDERR):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _text(sink: _Sink, before: TextIO | None) -> TextIO:
    encoding = before.encoding if before is not None else "utf-8"
    return io.TextIOWrapper(
        io.BufferedWriter(sink),  # type: ignore[type-var]  # what typeshed wants of raw streams is more than is used
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=sink.isatty() or sink.fileno() == _STDERR,
    )
