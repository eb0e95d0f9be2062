"""Large files are what was written, whichever way they went; past the page cache wherever the file system can."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datalake_assets.errors import LakeUnavailable
from datalake_assets.lake.store import uncached
from datalake_assets.lake.store.local import LocalStore
from datalake_assets.lake.store.uncached import ALIGNMENT, BLOCK_BYTES, stored_blocks
from datalake_assets.parquet.sinks import FileCopier

KEY = "data/a.parquet"
#: Around where a block ends, and where one may begin.
SIZES = st.sampled_from(
    [1, 4, ALIGNMENT - 4, ALIGNMENT, BLOCK_BYTES - 4, BLOCK_BYTES - ALIGNMENT, BLOCK_BYTES, 2_500_003]
)
SOURCE = os.urandom(3 << 20)
STAGED = ".staging/files"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("source") / "file"
    file.write_bytes(SOURCE)
    return file


def written(store: LocalStore, source: Path, parts: list[tuple[str, int]]) -> tuple[bytes, bytes]:
    """What was written in such parts, and what is stored."""
    expected = b""
    with source.open("rb") as opened, store.stage(KEY) as sink:
        assert isinstance(sink, FileCopier)
        for way, size_bytes in parts:
            begin = len(expected) % 1000
            if way == "copied":
                sink.expect(size_bytes)
                assert sink.copy_from(opened.fileno(), begin, begin + size_bytes) == size_bytes
            else:
                sink.write(SOURCE[begin : begin + size_bytes])
            expected += SOURCE[begin : begin + size_bytes]
        staged = sink.finish()
    assert staged.size_bytes == len(expected)
    stored = b"".join(map(bytes, store.read_staged(staged)))
    assert stored == Path(store.uri, staged.token).read_bytes()
    store.discard_staged(staged)
    return expected, stored


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.tuples(st.sampled_from(["copied", "written"]), SIZES), min_size=1, max_size=6))
def test_file_is_stored_as_it_was_written(local_store: LocalStore, source: Path, parts: list[tuple[str, int]]) -> None:
    expected, stored = written(local_store, source, parts)

    assert stored == expected


PARTS = [("written", 4), ("copied", 2_500_003), ("written", 5), ("copied", BLOCK_BYTES), ("written", 999)]


def without_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uncached, "_DIRECT", 0)


def without_cache_only_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv

    def preadv(descriptor: int, buffers: list[memoryview], at: int, flags: int = 0) -> int:
        if flags:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        return real(descriptor, buffers, at)

    monkeypatch.setattr(os, "preadv", preadv)


def refused_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.fcntl

    def set_flags(descriptor: int, command: int, flags: int = 0) -> int:
        if command == fcntl.F_SETFL and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "the file system cannot")
        return int(real(descriptor, command, flags))

    monkeypatch.setattr(fcntl, "fcntl", set_flags)


def refused_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag is taken and then nothing goes, as where a disk has larger sectors."""
    real_write, real_read = os.write, os.preadv

    def check(descriptor: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")

    def write(descriptor: int, data: memoryview) -> int:
        check(descriptor)
        return real_write(descriptor, data)

    def preadv(descriptor: int, buffers: list[memoryview], at: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError(errno.EAGAIN, "not in the cache")
        check(descriptor)
        return real_read(descriptor, buffers, at)

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "preadv", preadv)


def short_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[: max(1, len(data) // 3)]))


@pytest.mark.parametrize(
    "hinder",
    [without_flag, without_cache_only_reads, refused_flag, refused_blocks, short_writes],
    ids=lambda f: f.__name__,
)
def test_file_is_the_same_where_the_cache_cannot_be_bypassed(
    local_store: LocalStore, source: Path, monkeypatch: pytest.MonkeyPatch, hinder: Callable[[pytest.MonkeyPatch], None]
) -> None:
    hinder(monkeypatch)

    expected, stored = written(local_store, source, PARTS)

    assert stored == expected


def can_bypass(folder: Path) -> bool:
    try:
        os.close(os.open(folder / "probe", os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
    except (OSError, AttributeError):
        return False
    return True


def test_large_file_bypasses_the_page_cache_both_ways_but_for_its_ends(
    local_store: LocalStore, source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not can_bypass(tmp_path):
        pytest.skip("this file system cannot bypass the cache")
    seen: list[tuple[str, int, bool]] = []
    real_write, real_read = os.write, os.preadv

    def is_direct(descriptor: int) -> bool:
        return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)

    def write(descriptor: int, data: memoryview) -> int:
        seen.append(("write", len(data), is_direct(descriptor)))
        return real_write(descriptor, data)

    def preadv(descriptor: int, buffers: list[memoryview], at: int, flags: int = 0) -> int:
        if Path(f"/proc/self/fd/{descriptor}").readlink() == source:
            return real_read(descriptor, buffers, at)
        if flags:
            raise BlockingIOError(errno.EAGAIN, "not in the cache")
        seen.append(("read", len(buffers[0]), is_direct(descriptor)))
        return real_read(descriptor, buffers, at)

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "preadv", preadv)

    written(local_store, source, [("written", 4), ("copied", 2_500_003)])

    left = 4 + 2_500_003 - ALIGNMENT - 2 * BLOCK_BYTES
    assert seen == [
        ("write", ALIGNMENT - 4, False),
        ("write", BLOCK_BYTES, True),
        ("write", BLOCK_BYTES, True),
        ("write", left, False),
        *[("read", BLOCK_BYTES, True)] * 3,
    ]


def test_what_others_wrote_meanwhile_is_read(tmp_path: Path) -> None:
    """Their bytes may be in the cache, and not on the disk yet."""
    file = tmp_path / "file"
    file.write_bytes(SOURCE)
    with file.open("r+b") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        opened.seek(BLOCK_BYTES + 5)
        opened.write(b"changed")

    stored = b"".join(map(bytes, stored_blocks(file)))

    assert stored == SOURCE[: BLOCK_BYTES + 5] + b"changed" + SOURCE[BLOCK_BYTES + 12 :]


def test_full_disk_is_told_of_the_output_and_a_broken_one_of_the_input(
    local_store: LocalStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who rewrites leaves a file alone that cannot be read; where nothing can be written, he ends."""

    def fail(code: int) -> Callable[..., int]:
        def failing(*_: object) -> int:
            raise OSError(code, os.strerror(code))

        return failing

    with source.open("rb") as opened, local_store.stage(KEY) as sink:
        assert isinstance(sink, FileCopier)
        with monkeypatch.context() as patched:
            patched.setattr(os, "preadv", fail(errno.EIO))
            with pytest.raises(OSError, match="Input/output error"):
                sink.copy_from(opened.fileno(), 0, len(SOURCE))
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", fail(errno.ENOSPC))
            with pytest.raises(LakeUnavailable, match="the disk is full"):
                sink.copy_from(opened.fileno(), 0, len(SOURCE))
        sink.discard()
    assert not [*Path(local_store.uri, STAGED).iterdir()]


def test_finished_file_takes_no_more(local_store: LocalStore, source: Path) -> None:
    with source.open("rb") as opened, local_store.stage(KEY) as sink:
        assert isinstance(sink, FileCopier)
        sink.finish()
        with pytest.raises(ValueError, match="write to closed file"):
            sink.copy_from(opened.fileno(), 0, 10)
