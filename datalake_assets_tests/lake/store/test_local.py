"""What only a local lake has: the order of its fsyncs, its locks, and the operating system's refusals."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from datalake_assets.errors import AmbiguousWrite, CorruptLake, LakeUnavailable, TransientStoreError
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store import posix as durable
from datalake_assets.lake.store.base import StagedFile, Store
from datalake_assets.lake.store.local import LocalStore

KEY = "control/streams/payments/manifest.json"
DATA = "streams/payments/day=01/data_1.parquet"


@pytest.fixture
def calls(local_store: Store, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls that make names and make them durable, in order, on paths relative to the lake; ids as `*`."""
    log: list[str] = []

    def name(path: object) -> str:
        relative = os.path.relpath(str(path), local_store.uri)
        folder, _, last = relative.rpartition("/")
        return f"{folder}/*" if folder in {".staging/tmp", ".staging/files"} else f"{folder}/{last}".lstrip("/")

    def record(call: str, real: Callable[..., None], describe: Callable[..., str]) -> None:
        def recorded(*args: object, **kwargs: object) -> None:
            described = describe(*args)
            real(*args, **kwargs)
            log.append(f"{call} {described}")

        monkeypatch.setattr(os, call, recorded)

    record("fsync", os.fsync, lambda handle: name(Path(f"/proc/self/fd/{handle}").readlink()))
    record("link", os.link, lambda source, target: f"{name(source)} -> {name(target)}")
    record("replace", os.replace, lambda source, target: f"{name(source)} -> {name(target)}")
    record("unlink", os.unlink, name)
    return log


def stage(store: Store, key: str = DATA) -> StagedFile:
    with store.stage(key) as sink:
        sink.write(b"rows")
        return sink.finish()


def test_create_syncs_the_content_before_its_name_and_the_way_to_it_after(local_store: Store, calls: list[str]) -> None:
    local_store.create(KEY, b"body")

    assert calls == [
        "fsync .staging/tmp/*",
        f"link .staging/tmp/* -> {KEY}",
        "unlink .staging/tmp/*",
        "fsync control/streams/payments",
        "fsync control/streams",
        "fsync control",
        "fsync .",
    ]


def test_swap_syncs_the_content_before_and_the_folder_after(local_store: Store, calls: list[str]) -> None:
    etag = local_store.create(KEY, b"body")
    calls.clear()

    local_store.swap(KEY, b"other", etag=etag)

    assert calls == ["fsync .staging/tmp/*", f"replace .staging/tmp/* -> {KEY}", "fsync control/streams/payments"]


def test_commit_of_a_file_is_durable_before_each_next_step(local_store: Store, calls: list[str]) -> None:
    """Staged content and name, then visible, then every folder up to the first that existed; SIGKILL cannot show it."""
    Path(local_store.uri, "streams").mkdir()
    local_store.sync(["streams/known.parquet"])
    calls.clear()

    file = stage(local_store)
    assert calls == ["fsync .staging/files/*", "fsync .staging/files", "fsync .staging", "fsync ."]
    calls.clear()

    local_store.publish(file)
    assert calls == [f"link .staging/files/* -> {DATA}", "unlink .staging/files/*"]
    calls.clear()

    local_store.sync([DATA, DATA.replace("_1", "_2")])
    assert calls == ["fsync streams/payments/day=01", "fsync streams/payments", "fsync streams"]


def test_sync_goes_up_the_whole_way_in_a_process_that_did_not_make_the_folders(
    local_store: Store, calls: list[str]
) -> None:
    """Whoever made them may have died before it synced them."""
    local_store.publish(stage(local_store))
    calls.clear()

    open_store(local_store.uri).sync([DATA])

    assert calls == ["fsync streams/payments/day=01", "fsync streams/payments", "fsync streams", "fsync ."]


def test_folder_made_anew_is_synced_anew(local_store: Store, calls: list[str]) -> None:
    local_store.create("control/a", b"")
    local_store.delete(["control/a"])
    Path(local_store.uri, "control").rmdir()
    calls.clear()

    local_store.create("control/a", b"")

    assert calls[-2:] == ["fsync control", "fsync ."]


def test_delete_syncs_each_folder_once(local_store: Store, calls: list[str]) -> None:
    for name in ("a/1", "a/2", "b/3"):
        local_store.put(name, b"")
    calls.clear()

    local_store.delete(["a/1", "a/2", "b/3"])

    assert calls == ["unlink a/1", "unlink a/2", "unlink b/3", "fsync a", "fsync b"]


def test_data_files_are_deleted_without_a_lock_and_never_swapped(local_store: Store) -> None:
    """A lock is a file of its own; there is none to keep, since nobody compares data files and replaces them."""
    local_store.publish(stage(local_store))
    local_store.delete([DATA, DATA.replace("_1", "_2")])

    assert local_store.head(DATA) is None
    assert not Path(local_store.uri, ".staging/locks").exists()
    with pytest.raises(ValueError, match="never swapped"):
        local_store.swap(DATA, b"", etag=local_store.put(DATA, b"other"))


def test_write_is_ambiguous_when_its_folder_cannot_be_synced(
    local_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(durable, "fsync_folder", fail)

    with pytest.raises(AmbiguousWrite, match="could not be synced"):
        local_store.create(KEY, b"body")


def test_data_folders_hold_nothing_but_whole_files(local_store: Store) -> None:
    local_store.swap(KEY, b"2", etag=local_store.create(KEY, b"1"))
    local_store.publish(stage(local_store))
    local_store.stage(DATA).write(b"unfinished")

    files = {
        path.relative_to(local_store.uri).as_posix() for path in Path(local_store.uri).rglob("*") if path.is_file()
    }

    assert {path for path in files if not path.startswith(".staging/")} == {KEY, DATA}
    assert not list(Path(local_store.uri, ".staging", "tmp").iterdir())


def test_publish_completes_what_a_crash_between_link_and_unlink_left(local_store: Store) -> None:
    file = stage(local_store)
    target = Path(local_store.path(DATA))
    target.parent.mkdir(parents=True)
    os.link(Path(local_store.uri, file.token), target)

    local_store.publish(file)

    assert not local_store.has_staged(file)
    assert target.read_bytes() == b"rows"


def test_publish_never_overwrites(local_store: Store) -> None:
    local_store.put(DATA, b"somebody else's")
    file = stage(local_store)

    with pytest.raises(CorruptLake, match="nothing was overwritten"):
        local_store.publish(file)

    assert local_store.get(DATA)[0] == b"somebody else's"
    assert local_store.has_staged(file)


@pytest.mark.parametrize("token", ["../outside", ".staging/files/../../x", "/etc/passwd", ".staging/files/", "x"])
def test_token_that_leaves_the_staging_folder_is_refused(local_store: Store, token: str) -> None:
    with pytest.raises(CorruptLake, match="cannot be the name"):
        local_store.publish(StagedFile(DATA, 1, token))


@pytest.mark.parametrize("length", [230, 236, 237, 238, 239, 240, 476, 477, 900, 1000])
def test_key_too_long_for_one_file_name_is_staged_in_folders(local_store: Store, length: int) -> None:
    keys = [f"{'x/' * (length // 2)}{name}" for name in ("a.parquet", "b,c%.parquet")]
    staged = []
    for key in keys:
        with local_store.stage(key) as writer:
            writer.write(key.encode())
            staged.append(writer.finish())

    assert sorted(each.key for each in local_store.list_staged("x")) == sorted(keys)
    assert {each.token for each in local_store.list_staged("")} == {each.token for each in staged}
    local_store.publish(staged[0])
    assert local_store.get(keys[0])[0] == keys[0].encode()
    assert b"".join(map(bytes, local_store.read_staged(staged[1]) or ())) == keys[1].encode()
    local_store.discard_staged(staged[1])
    assert list(Path(local_store.uri, ".staging/files").iterdir()) == []


def test_missing_lake_is_told_and_never_made(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "gone"))

    for call in (
        lambda: store.get("a"),
        lambda: store.head("a"),
        lambda: store.put("a/b", b""),
        lambda: store.create("a/b", b""),
        lambda: store.delete(["a/b"]),
        lambda: list(store.list("")),
        lambda: store.stage("a"),
        store.probe,
    ):
        with pytest.raises(LakeUnavailable, match=r"gone: no such folder; mount its disk, .*'datalake init'"):
            call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "the disk is full; free some space"),
        (errno.EROFS, "the disk is read-only; mount it writable"),
        (errno.EACCES, "no permission; give this user"),
        (errno.EXDEV, "another device"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_refusal_of_the_system_names_lake_cause_and_cure(
    local_store: Store, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)

    with pytest.raises(LakeUnavailable, match=words) as caught:
        local_store.create(KEY, b"body")

    assert str(caught.value).startswith(f"{local_store.uri}/{KEY}: ")
    assert not list(Path(local_store.uri, ".staging", "tmp").iterdir())


def test_full_disk_is_told_by_the_writer(local_store: Store) -> None:
    """/dev/full stands for a full disk."""
    sink = local_store.stage(DATA)
    with Path("/dev/full").open("wb", buffering=0) as full:
        os.dup2(full.fileno(), sink._file.fileno())  # type: ignore[attr-defined]

    with pytest.raises(LakeUnavailable, match="the disk is full"):
        sink.write(b"x")
    sink.discard()


def test_lock_held_for_long_is_transient(local_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    etag = local_store.create(KEY, b"1")
    local_store.swap(KEY, b"2", etag=etag)
    monkeypatch.setattr(durable, "LOCK_TIMEOUT_S", 0.01)
    [lock] = Path(local_store.uri, ".staging", "locks").iterdir()

    with lock.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(TransientStoreError, match="held a lock"):
            local_store.swap(KEY, b"3", etag=etag)


def test_lists_neither_links_to_folders_nor_broken_links(local_store: Store, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("x")
    local_store.put("a/1", b"x")
    Path(local_store.uri, "a", "link").symlink_to(tmp_path / "outside")
    Path(local_store.uri, "a", "broken").symlink_to(tmp_path / "nothing")

    assert [info.key for info in local_store.list("")] == ["a/1"]


def test_beginning_passes_over_a_link_to_itself(local_store: Store) -> None:
    local_store.put("a/_x_1", b"x")
    Path(local_store.uri, "a", "_x_2").symlink_to("_x_2")

    assert [info.key for info in local_store.beginning("a/_x_")] == ["a/_x_1"]


def test_opens_a_file_uri_and_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert open_store("lake").uri == open_store(f"file://{tmp_path}/lake").uri == str(tmp_path / "lake")
    assert isinstance(open_store("lake"), LocalStore)


def test_importing_the_store_is_cheap() -> None:
    """The command line's --help must not pay for clients that it does not use."""
    code = "import sys, datalake_assets.lake.store.local; print(*({'boto3', 'obstore', 'pyarrow'} & {*sys.modules}))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []
