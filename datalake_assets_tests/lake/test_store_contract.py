"""The contract of every store: each test runs on a local folder and on a real S3 server."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from datalake_assets.errors import ConfigError, ObjectNotFound, PreconditionFailed, UploadGone
from datalake_assets.lake.store import StagedFile, Store, open_store

KEY = "control/streams/payments/year=2025/manifest.json"
DATA = "streams/payments/year=2025/month=01/data_1.parquet"
ABSENT_ETAG = "0" * 32


def keys(store: Store, prefix: str = "") -> list[str]:
    return sorted(info.key for info in store.list(prefix))


def staged(store: Store, key: str = DATA, body: bytes = b"rows") -> StagedFile:
    with store.stage(key) as sink:
        sink.write(body)
        return sink.finish()


def visible(store: Store) -> list[str]:
    """What any reader could see: our listing, Arrow's, and in a local lake the disk itself."""
    selector = pyarrow.fs.FileSelector(store.path(""), recursive=True, allow_not_found=True)
    seen = {info.path for info in store.filesystem().get_file_info(selector) if info.is_file}
    seen = {path for path in seen if ".staging" not in Path(path).relative_to(store.path("")).parts}
    for folder, _, names in os.walk(store.uri):
        if ".staging" not in Path(folder).parts:
            seen |= {f"{folder}/{name}" for name in names}
    return sorted({*keys(store), *(os.path.relpath(path, store.path("")) for path in seen)})


def outcomes(attempts: list[Callable[[], object]]) -> list[str]:
    """Start all at once; the name of each one's error, or "won"."""
    barrier = threading.Barrier(len(attempts))

    def run(attempt: Callable[[], object]) -> str:
        barrier.wait()
        try:
            attempt()
        except PreconditionFailed as error:
            return type(error).__name__
        return "won"

    with ThreadPoolExecutor(len(attempts)) as threads:
        return sorted(threads.map(run, attempts))


# ---- objects


def test_get_returns_what_create_wrote(store: Store) -> None:
    etag = store.create(KEY, b"first")

    assert store.get(KEY) == (b"first", etag)


def test_create_fails_when_the_object_exists(store: Store) -> None:
    store.create(KEY, b"first")

    with pytest.raises(PreconditionFailed, match=r"exists already|changed"):
        store.create(KEY, b"second")

    assert store.get(KEY)[0] == b"first"


def test_swap_replaces_when_the_etag_matches(store: Store) -> None:
    etag = store.swap(KEY, b"second", etag=store.create(KEY, b"first"))

    assert store.get(KEY) == (b"second", etag)


def test_swap_fails_when_another_writer_was_faster(store: Store) -> None:
    old = store.create(KEY, b"first")
    store.swap(KEY, b"second", etag=old)

    with pytest.raises(PreconditionFailed):
        store.swap(KEY, b"third", etag=old)

    assert store.get(KEY)[0] == b"second"


def test_swap_fails_when_nothing_is_there(store: Store) -> None:
    with pytest.raises(PreconditionFailed):
        store.swap(KEY, b"body", etag=ABSENT_ETAG)

    assert store.head(KEY) is None


def test_put_overwrites_and_its_etag_swaps(store: Store) -> None:
    store.put(KEY, b"first")
    store.swap(KEY, b"third", etag=store.put(KEY, b"second"))

    assert store.get(KEY)[0] == b"third"


def test_etag_changes_when_the_content_does(store: Store) -> None:
    assert store.put(KEY, b"first") != store.put(KEY, b"other")


def test_empty_body_is_an_object(store: Store) -> None:
    etag = store.create(KEY, b"")

    assert store.get(KEY) == (b"", etag)


def test_get_raises_when_absent(store: Store) -> None:
    with pytest.raises(ObjectNotFound, match="nothing/here"):
        store.get("nothing/here")


def test_get_raises_when_the_key_is_a_folder(store: Store) -> None:
    store.create(KEY, b"x")

    with pytest.raises(ObjectNotFound):
        store.get("control/streams")


def test_head_describes_the_object(store: Store) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)  # S3's times are whole seconds
    store.put(KEY, b"12345")

    info = store.head(KEY)

    assert info
    assert (info.key, info.size_bytes) == (KEY, 5)
    assert before <= info.modified_at <= datetime.now(UTC) + timedelta(seconds=2)
    assert info.modified_at.utcoffset() == timedelta(0)


def test_head_is_none_when_absent_or_a_folder(store: Store) -> None:
    store.put(KEY, b"x")

    assert store.head("control/nothing") is None
    assert store.head("control/streams") is None


def test_head_and_list_agree_on_the_etag(store: Store) -> None:
    store.put(KEY, b"x")

    assert list(store.list("control")) == [store.head(KEY)]


def test_list_is_recursive_and_by_whole_folders(store: Store) -> None:
    for key in ("a/b/1", "a/2", "ab/3", "4"):
        store.put(key, b"x")

    assert keys(store) == ["4", "a/2", "a/b/1", "ab/3"]
    assert keys(store, "a") == ["a/2", "a/b/1"]
    assert keys(store, "none") == []


def test_list_shows_more_than_one_page(store: Store) -> None:
    names = [f"many/{number % 7}/{number:04}" for number in range(1003)]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda key: store.put(key, b""), names))

    assert keys(store, "many") == sorted(names)


@pytest.mark.parametrize("name", ["a b", "k=v", "100%", "p%2Fq", "a+b", "é", "t~#?[]{}^`", ",;:@&$'()*!"])
def test_any_printable_name_round_trips(store: Store, name: str) -> None:
    key = f"odd/{name}/{name}.parquet"

    store.publish(staged(store, key, b"body"))

    assert store.get(key)[0] == b"body"
    assert store.head(key)
    assert keys(store, f"odd/{name}") == [key]
    store.delete([key])
    assert keys(store) == []


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\\b", "a\nb", "a\0b", "\ud800"])
def test_bad_key_is_refused(store: Store, key: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a key"):
        store.put(key, b"x")
    with pytest.raises(ConfigError, match="cannot be a key"):
        store.stage(key)
    with pytest.raises(ConfigError, match="cannot be a key"):
        store.delete([key])


@pytest.mark.parametrize("key", [".staging", ".staging/files/x"])
def test_reserved_key_is_refused(store: Store, key: str) -> None:
    with pytest.raises(ConfigError, match="reserved"):
        store.create(key, b"x")


def test_delete_removes_and_does_not_mind_absent_keys(store: Store) -> None:
    store.put("a/1", b"x")
    store.put("a/2", b"x")

    store.delete(["a/1", "a/none", "none/at/all"])
    store.delete(iter(["a/1"]))
    store.delete([])

    assert keys(store) == ["a/2"]


def test_delete_takes_more_than_one_request(store: Store) -> None:
    store.put("a/1002", b"x")

    store.delete(f"a/{number}" for number in range(1003))

    assert keys(store) == []


def etag_of(store: Store, key: str) -> str:
    info = store.head(key)
    assert info
    return info.etag


def test_delete_if_removes_what_did_not_change(store: Store) -> None:
    store.put("a/1", b"x")
    store.put("a/2", b"y")

    kept = store.delete_if({"a/1": etag_of(store, "a/1"), "a/none": "0" * 32, "none/at/all": "0" * 32})

    assert kept == ()
    assert keys(store) == ["a/2"]


def test_delete_if_keeps_what_was_overwritten(store: Store) -> None:
    store.put("a/1", b"one")
    store.put("a/2", b"two")
    etags = {key: etag_of(store, key) for key in ("a/1", "a/2")}
    store.put("a/1", b"another")

    assert store.delete_if(etags) == ("a/1",)
    assert keys(store) == ["a/1"]
    assert store.get("a/1")[0] == b"another"
    assert store.delete_if(etags) == ("a/1",)


def test_delete_if_takes_more_than_one_request(store: Store) -> None:
    store.put("a/1002", b"x")
    etag = etag_of(store, "a/1002")

    assert store.delete_if({f"a/{number}": etag for number in range(1003)}) == ()
    assert keys(store) == []


def test_changed_names_what_is_gone_or_another(store: Store) -> None:
    for key in ("a/1", "a/2", "a/3"):
        store.put(key, key.encode())
    etags = {key: etag_of(store, key) for key in ("a/1", "a/2", "a/3")}
    store.put("a/1", b"another")
    store.delete(["a/3"])

    assert store.changed(etags) == ("a/1", "a/3")


@pytest.mark.parametrize(("size_bytes", "tail"), [(4, b"6789"), (10, b"0123456789"), (99, b"0123456789")])
def test_tail_is_the_end_of_an_object(store: Store, size_bytes: int, tail: bytes) -> None:
    store.put("a/1", b"0123456789")

    assert store.tail("a/1", size_bytes, etag=etag_of(store, "a/1")) == tail


def test_tail_of_an_empty_object_is_empty(store: Store) -> None:
    store.put("a/1", b"")

    assert store.tail("a/1", 8, etag=etag_of(store, "a/1")) == b""


def test_tail_is_refused_when_the_object_changed_or_is_gone(store: Store) -> None:
    store.put("a/1", b"one")
    etag = etag_of(store, "a/1")
    store.put("a/1", b"another")

    with pytest.raises(PreconditionFailed):
        store.tail("a/1", 8, etag=etag)
    with pytest.raises(ObjectNotFound):
        store.tail("a/2", 8, etag=etag)


# ---- races


def test_create_race_has_exactly_one_winner(store: Store) -> None:
    for round_ in range(3):  # a loser may wait seconds for the S3 server's own lock
        key = f"race/{round_}"
        bodies = [f"writer {writer}".encode() for writer in range(4)]

        result = outcomes([lambda body=body, key=key: store.create(key, body) for body in bodies])

        assert result == ["PreconditionFailed"] * 3 + ["won"]
        assert store.get(key)[0] in bodies


def test_swap_race_has_exactly_one_winner(store: Store) -> None:
    etag = store.create(KEY, b"start")
    for round_ in range(3):  # a loser may wait seconds for the S3 server's own lock
        bodies = [f"round {round_} writer {writer}".encode() for writer in range(4)]

        result = outcomes([lambda body=body, etag=etag: store.swap(KEY, body, etag=etag) for body in bodies])

        assert result == ["PreconditionFailed"] * 3 + ["won"]
        body, etag = store.get(KEY)
        assert body in bodies


def test_counter_by_compare_and_swap_loses_nothing(store: Store) -> None:
    store.create(KEY, b"0")

    def count(_: int) -> None:
        done = 0
        while done < 25:
            body, etag = store.get(KEY)
            try:
                store.swap(KEY, b"%d" % (int(body) + 1), etag=etag)
            except PreconditionFailed:
                continue
            done += 1

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(count, range(4)))

    assert store.get(KEY)[0] == b"100"


# ---- staged files


def test_staged_file_is_invisible_until_published(store: Store) -> None:
    with store.stage(DATA) as sink:
        sink.write(b"x" * 9_000_000)
        assert visible(store) == []
        file = sink.finish()

    assert visible(store) == []
    assert store.head(DATA) is None
    assert store.has_staged(file)

    store.publish(file)
    store.sync([DATA])

    assert visible(store) == [DATA]
    assert store.get(DATA)[0] == b"x" * 9_000_000


def test_staged_file_knows_its_key_and_size(store: Store) -> None:
    file = staged(store, body=b"12345")

    assert (file.key, file.size_bytes) == (DATA, 5)


def test_staged_file_is_published_by_another_process_from_plain_data(store: Store) -> None:
    file = staged(store)
    other = open_store(store.uri, s3_endpoint=os.environ.get("DATALAKE_S3_ENDPOINT"))

    other.publish(StagedFile(file.key, file.size_bytes, file.token, file.parts))

    assert store.get(DATA)[0] == b"rows"


def test_staged_file_is_read_back_or_was_verified_on_arrival(store: Store) -> None:
    body = os.urandom(3_000_000)
    chunks = store.read_staged(staged(store, body=body))

    assert chunks is None or b"".join(chunks) == body


def test_staged_file_that_is_gone_is_not_read_back(store: Store) -> None:
    file = staged(store)
    store.discard_staged(file)
    chunks = store.read_staged(file)

    if chunks is not None:
        with pytest.raises(UploadGone):
            list(chunks)


def test_empty_file_can_be_staged(store: Store) -> None:
    store.publish(staged(store, body=b""))

    assert store.get(DATA)[0] == b""


def test_publish_consumes_the_staged_file(store: Store) -> None:
    file = staged(store)
    store.publish(file)

    assert not store.has_staged(file)
    assert list(store.list_staged("")) == []


def test_publish_again_changes_nothing(store: Store) -> None:
    """A second publish may say `UploadGone` or nothing; the file stays as it is, whole."""
    file = staged(store)
    store.publish(file)
    before = store.head(DATA)

    with contextlib.suppress(UploadGone):
        store.publish(file)

    assert store.head(DATA) == before
    assert store.get(DATA)[0] == b"rows"


def test_publish_does_not_resurrect_a_deleted_file(store: Store) -> None:
    """A zombie that published before it slept must not bring back what a compaction has removed since."""
    file = staged(store)
    store.publish(file)
    store.delete([DATA])

    with pytest.raises(UploadGone):
        store.publish(file)

    assert visible(store) == []


def test_publish_fails_when_discarded(store: Store) -> None:
    file = staged(store)
    store.discard_staged(file)
    store.discard_staged(file)

    assert not store.has_staged(file)
    with pytest.raises(UploadGone, match=r"data_1\.parquet"):
        store.publish(file)
    assert visible(store) == []


def test_discard_staged_leaves_a_published_file(store: Store) -> None:
    file = staged(store)
    store.publish(file)

    store.discard_staged(file)

    assert store.get(DATA)[0] == b"rows"


def test_publish_race_leaves_one_whole_file(store: Store) -> None:
    for round_ in range(5):
        file = staged(store, f"race/{round_}", b"x" * 1000)

        def publish(file: StagedFile = file) -> None:
            try:
                store.publish(file)
            except UploadGone:
                return

        assert outcomes([publish] * 4) == ["won"] * 4
        assert store.get(file.key)[0] == b"x" * 1000


def test_writer_discards_when_the_block_raises(store: Store) -> None:
    def write_and_fail() -> None:
        with store.stage(DATA) as sink:
            sink.write(b"x" * 9_000_000)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        write_and_fail()

    assert list(store.list_staged("")) == []
    assert visible(store) == []


def test_writer_discards_when_never_finished(store: Store) -> None:
    with store.stage(DATA) as sink:
        sink.write(b"x" * 9_000_000)
    sink.discard()

    assert list(store.list_staged("")) == []
    with pytest.raises(ValueError, match="discarded"):
        sink.finish()


def test_writer_discards_when_it_is_garbage(store: Store) -> None:
    sink = store.stage(DATA)
    sink.write(b"x" * 9_000_000)
    del sink
    gc.collect()

    assert list(store.list_staged("")) == []


def test_writer_finishes_once_and_after_close(store: Store) -> None:
    """pyarrow may close a sink that it was lent."""
    with store.stage(DATA) as sink:
        sink.write(b"rows")
        sink.close()
        assert sink.closed
        file = sink.finish()
        assert sink.finish() is file
    sink.discard()

    store.publish(file)
    with pytest.raises(ValueError, match="closed"):
        sink.write(b"more")


def test_writer_takes_any_buffer_and_tells_its_position(store: Store) -> None:
    with store.stage(DATA) as sink:
        assert sink.write(b"ab") == 2
        assert sink.write(memoryview(bytearray(b"cd"))) == 2
        assert sink.write(pa.py_buffer(b"ef")) == 2
        assert sink.tell() == 6
        store.publish(sink.finish())

    assert store.get(DATA)[0] == b"abcdef"


def test_parquet_of_many_parts_reads_back_equal(store: Store) -> None:
    table = pa.table({"id": pa.array(range(900_000)), "text": pa.array([f"row {i}" for i in range(900_000)])})
    with store.stage(DATA) as sink:
        with pq.ParquetWriter(sink, table.schema, compression="none", use_dictionary=False) as writer:
            writer.write_table(table, row_group_size=200_000)
        file = sink.finish()
    store.publish(file)

    assert file.size_bytes > 2 * 8 * 1024 * 1024
    with store.filesystem().open_input_file(store.path(DATA)) as source:
        assert pq.read_table(source).equals(table)


def test_staging_64_mb_takes_bounded_memory(store: Store) -> None:
    piece = os.urandom(1_000_000)
    store.discard_staged(staged(store))  # imports and connections are not the file's
    tracemalloc.start()
    try:
        with store.stage(DATA) as sink:
            for _ in range(64):
                sink.write(piece)
            file = sink.finish()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert file.size_bytes == 64_000_000
    assert peak < 40_000_000


def test_list_staged_shows_key_token_and_age(store: Store) -> None:
    before = store.now() - timedelta(seconds=2)
    file = staged(store)
    staged(store, "streams/payments_eu/a.parquet")

    [upload] = store.list_staged("streams/payments")

    assert (upload.key, upload.token) == (file.key, file.token)
    assert before <= upload.started_at <= store.now() + timedelta(seconds=2)
    assert len(list(store.list_staged(""))) == 2


def test_discard_stale_drops_what_was_listed(store: Store) -> None:
    file = staged(store)
    [upload] = store.list_staged("")

    store.discard_stale(upload)
    store.discard_stale(upload)

    assert not store.has_staged(file)
    assert list(store.list_staged("")) == []


# ---- the rest


def test_now_is_near_this_machines_clock(store: Store) -> None:
    assert abs(store.now() - datetime.now(UTC)) < timedelta(seconds=5)
    assert store.now().utcoffset() == timedelta(0)


def test_arrow_scans_hive_folders(store: Store) -> None:
    for month in (1, 2):
        with store.stage(f"streams/s/month={month:02}/a.parquet") as sink:
            pq.write_table(pa.table({"a": [month]}), sink)
            store.publish(sink.finish())

    table = pq.read_table(store.path("streams/s"), filesystem=store.filesystem(), filters=[("month", "=", 2)])

    assert table.to_pydict()["a"] == [2]


def test_probe_passes_and_leaves_nothing(store: Store) -> None:
    store.probe()
    spent = dict(store.requests)
    store.probe()

    assert dict(store.requests) == spent
    assert visible(store) == []


def test_requests_are_counted_by_class(store: Store) -> None:
    store.put(KEY, b"x")
    store.get(KEY)
    store.head(KEY)
    list(store.list(""))
    store.delete([KEY])

    assert dict(store.requests) == {"put": 1, "get": 2, "list": 1, "delete": 1}


def test_open_store_refuses_what_cannot_be_a_lake() -> None:
    for uri in ("", "gs://bucket/x", "s3://", "s3://bucket/x?y=1", "s3://bucket/../x"):
        with pytest.raises(ConfigError):
            open_store(uri)


def test_open_store_refuses_credentials_without_showing_them() -> None:
    with pytest.raises(ConfigError) as caught:
        open_store("s3://AKIA:topsecret@bucket/lake")

    assert "topsecret" not in str(caught.value)
