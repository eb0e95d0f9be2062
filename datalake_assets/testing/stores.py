"""The contract of `Store`, as a suite that every implementation runs: its objects.

    class TestMyStore(StoreContract):
        @pytest.fixture
        def store(self, tmp_path):
            return MyStore(tmp_path)

Staged files have a suite of their own, `datalake_assets.testing.staged_files`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from datalake_assets.errors import ConfigError, ObjectNotFound, PreconditionFailed
from datalake_assets.lake.store.base import StagedFile, Store

__all__ = ["DATA", "KEY", "StoreContract", "keys", "outcomes", "staged", "visible"]

#: An object and a data file, as lakes have them.
KEY = "control/streams/payments/year=2025/manifest.json"
DATA = "streams/payments/year=2025/month=01/data_1.parquet"


def keys(store: Store, prefix: str = "") -> list[str]:
    """What a listing shows."""
    return sorted(info.key for info in store.list(prefix))


def staged(store: Store, key: str = DATA, body: bytes = b"rows") -> StagedFile:
    """A file that is staged and whole."""
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


ABSENT_ETAG = "0" * 32


def etag_of(store: Store, key: str) -> str:
    info = store.head(key)
    assert info
    return info.etag


class StoreContract:
    """What every store promises of the objects in it.

    A subclass has the fixture ``store``.
    """

    @pytest.fixture
    def store(self) -> Store:
        """An empty store, for each test."""
        raise NotImplementedError

    def test_get_returns_what_create_wrote(self, store: Store) -> None:
        etag = store.create(KEY, b"first")

        assert store.get(KEY) == (b"first", etag)

    def test_create_fails_when_the_object_exists(self, store: Store) -> None:
        store.create(KEY, b"first")

        with pytest.raises(PreconditionFailed, match=r"exists already|changed"):
            store.create(KEY, b"second")

        assert store.get(KEY)[0] == b"first"

    def test_swap_replaces_when_the_etag_matches(self, store: Store) -> None:
        etag = store.swap(KEY, b"second", etag=store.create(KEY, b"first"))

        assert store.get(KEY) == (b"second", etag)

    def test_swap_fails_when_another_writer_was_faster(self, store: Store) -> None:
        old = store.create(KEY, b"first")
        store.swap(KEY, b"second", etag=old)

        with pytest.raises(PreconditionFailed):
            store.swap(KEY, b"third", etag=old)

        assert store.get(KEY)[0] == b"second"

    def test_swap_fails_when_nothing_is_there(self, store: Store) -> None:
        with pytest.raises(PreconditionFailed):
            store.swap(KEY, b"body", etag=ABSENT_ETAG)

        assert store.head(KEY) is None

    def test_put_overwrites_and_its_etag_swaps(self, store: Store) -> None:
        store.put(KEY, b"first")
        store.swap(KEY, b"third", etag=store.put(KEY, b"second"))

        assert store.get(KEY)[0] == b"third"

    def test_etag_changes_when_the_content_does(self, store: Store) -> None:
        assert store.put(KEY, b"first") != store.put(KEY, b"other")

    def test_empty_body_is_an_object(self, store: Store) -> None:
        etag = store.create(KEY, b"")

        assert store.get(KEY) == (b"", etag)

    def test_get_raises_when_absent(self, store: Store) -> None:
        with pytest.raises(ObjectNotFound, match="nothing/here"):
            store.get("nothing/here")

    def test_get_raises_when_the_key_is_a_folder(self, store: Store) -> None:
        store.create(KEY, b"x")

        with pytest.raises(ObjectNotFound):
            store.get("control/streams")

    def test_head_describes_the_object(self, store: Store) -> None:
        before = datetime.now(UTC) - timedelta(seconds=2)  # S3's times are whole seconds
        store.put(KEY, b"12345")

        info = store.head(KEY)

        assert info
        assert (info.key, info.size_bytes) == (KEY, 5)
        assert before <= info.modified_at <= datetime.now(UTC) + timedelta(seconds=2)
        assert info.modified_at.utcoffset() == timedelta(0)

    def test_head_is_none_when_absent_or_a_folder(self, store: Store) -> None:
        store.put(KEY, b"x")

        assert store.head("control/nothing") is None
        assert store.head("control/streams") is None

    def test_head_and_list_agree_on_the_etag(self, store: Store) -> None:
        store.put(KEY, b"x")

        assert list(store.list("control")) == [store.head(KEY)]

    def test_list_is_recursive_and_by_whole_folders(self, store: Store) -> None:
        for key in ("a/b/1", "a/2", "ab/3", "4"):
            store.put(key, b"x")

        assert keys(store) == ["4", "a/2", "a/b/1", "ab/3"]
        assert keys(store, "a") == ["a/2", "a/b/1"]
        assert keys(store, "none") == []

    def test_beginning_gives_names_of_one_folder_that_begin_so(self, store: Store) -> None:
        for key in ("a/_x_1", "a/_x_2", "a/x", "a/b/_x_3", "a/_x_/4", "_x_5", "_y"):
            store.put(key, b"x")

        assert [store.head("a/_x_1")] == [info for info in store.beginning("a/_x_") if info.key == "a/_x_1"]
        assert sorted(info.key for info in store.beginning("a/_x_")) == ["a/_x_1", "a/_x_2"]
        assert sorted(store.keys("a")) == sorted(info.key for info in store.list("a"))
        assert [info.key for info in store.beginning("_x_")] == ["_x_5"]
        assert list(store.beginning("none/_x_")) == []
        assert list(store.beginning("a/x/_x_")) == []

    def test_list_shows_more_than_one_page(self, store: Store) -> None:
        names = [f"many/{number % 7}/{number:04}" for number in range(1003)]
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(lambda key: store.put(key, b""), names))

        assert keys(store, "many") == sorted(names)

    @pytest.mark.parametrize("name", ["a b", "k=v", "100%", "p%2Fq", "a+b", "é", "t~#?[]{}^`", ",;:@&$'()*!"])
    def test_any_printable_name_round_trips(self, store: Store, name: str) -> None:
        key = f"odd/{name}/{name}.parquet"

        store.publish(staged(store, key, b"body"))

        assert store.get(key)[0] == b"body"
        assert store.head(key)
        assert keys(store, f"odd/{name}") == [key]
        store.delete([key])
        assert keys(store) == []

    @pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\\b", "a\nb", "a\0b", "\ud800"])
    def test_bad_key_is_refused(self, store: Store, key: str) -> None:
        with pytest.raises(ConfigError, match="cannot be a key"):
            store.put(key, b"x")
        with pytest.raises(ConfigError, match="cannot be a key"):
            store.stage(key)
        with pytest.raises(ConfigError, match="cannot be a key"):
            store.delete([key])

    @pytest.mark.parametrize("key", [".staging", ".staging/files/x"])
    def test_reserved_key_is_refused(self, store: Store, key: str) -> None:
        with pytest.raises(ConfigError, match="reserved"):
            store.create(key, b"x")

    def test_delete_removes_and_does_not_mind_absent_keys(self, store: Store) -> None:
        store.put("a/1", b"x")
        store.put("a/2", b"x")

        store.delete(["a/1", "a/none", "none/at/all"])
        store.delete(iter(["a/1"]))
        store.delete([])

        assert keys(store) == ["a/2"]

    def test_delete_takes_more_than_one_request(self, store: Store) -> None:
        store.put("a/1002", b"x")

        store.delete(f"a/{number}" for number in range(1003))

        assert keys(store) == []

    def test_delete_if_removes_what_did_not_change(self, store: Store) -> None:
        store.put("a/1", b"x")
        store.put("a/2", b"y")

        kept = store.delete_if({"a/1": etag_of(store, "a/1"), "a/none": "0" * 32, "none/at/all": "0" * 32})

        assert kept == ()
        assert keys(store) == ["a/2"]

    def test_delete_if_keeps_what_was_overwritten(self, store: Store) -> None:
        store.put("a/1", b"one")
        store.put("a/2", b"two")
        etags = {key: etag_of(store, key) for key in ("a/1", "a/2")}
        store.put("a/1", b"another")

        assert store.delete_if(etags) == ("a/1",)
        assert keys(store) == ["a/1"]
        assert store.get("a/1")[0] == b"another"
        assert store.delete_if(etags) == ("a/1",)

    def test_delete_if_takes_more_than_one_request(self, store: Store) -> None:
        store.put("a/1002", b"x")
        etag = etag_of(store, "a/1002")

        assert store.delete_if({f"a/{number}": etag for number in range(1003)}) == ()
        assert keys(store) == []

    def test_changed_names_what_is_gone_or_another(self, store: Store) -> None:
        for key in ("a/1", "a/2", "a/3"):
            store.put(key, key.encode())
        etags = {key: etag_of(store, key) for key in ("a/1", "a/2", "a/3")}
        store.put("a/1", b"another")
        store.delete(["a/3"])

        assert store.changed(etags) == ("a/1", "a/3")

    @pytest.mark.parametrize(("size_bytes", "tail"), [(4, b"6789"), (10, b"0123456789"), (99, b"0123456789")])
    def test_tail_is_the_end_of_an_object(self, store: Store, size_bytes: int, tail: bytes) -> None:
        store.put("a/1", b"0123456789")

        assert store.tail("a/1", size_bytes, etag=etag_of(store, "a/1")) == tail

    def test_tail_of_an_empty_object_is_empty(self, store: Store) -> None:
        store.put("a/1", b"")

        assert store.tail("a/1", 8, etag=etag_of(store, "a/1")) == b""

    def test_tail_is_refused_when_the_object_changed_or_is_gone(self, store: Store) -> None:
        store.put("a/1", b"one")
        etag = etag_of(store, "a/1")
        store.put("a/1", b"another")

        with pytest.raises(PreconditionFailed):
            store.tail("a/1", 8, etag=etag)
        with pytest.raises(ObjectNotFound):
            store.tail("a/2", 8, etag=etag)

    def test_create_race_has_exactly_one_winner(self, store: Store) -> None:
        for round_ in range(3):  # a loser may wait seconds for the S3 server's own lock
            key = f"race/{round_}"
            bodies = [f"writer {writer}".encode() for writer in range(4)]

            result = outcomes([partial(store.create, key, body) for body in bodies])

            assert result == ["PreconditionFailed"] * 3 + ["won"]
            assert store.get(key)[0] in bodies

    def test_swap_race_has_exactly_one_winner(self, store: Store) -> None:
        etag = store.create(KEY, b"start")
        for round_ in range(3):  # a loser may wait seconds for the S3 server's own lock
            bodies = [f"round {round_} writer {writer}".encode() for writer in range(4)]

            result = outcomes([partial(store.swap, KEY, body, etag=etag) for body in bodies])

            assert result == ["PreconditionFailed"] * 3 + ["won"]
            body, etag = store.get(KEY)
            assert body in bodies

    def test_counter_by_compare_and_swap_loses_nothing(self, store: Store) -> None:
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

    def test_now_is_near_this_machines_clock(self, store: Store) -> None:
        assert abs(store.now() - datetime.now(UTC)) < timedelta(seconds=5)
        assert store.now().utcoffset() == timedelta(0)

    def test_arrow_scans_hive_folders(self, store: Store) -> None:
        for month in (1, 2):
            with store.stage(f"streams/s/month={month:02}/a.parquet") as sink:
                pq.write_table(pa.table({"a": [month]}), sink)
                store.publish(sink.finish())

        table = pq.read_table(store.path("streams/s"), filesystem=store.filesystem(), filters=[("month", "=", 2)])

        assert table.to_pydict()["a"] == [2]

    def test_probe_passes_and_leaves_nothing(self, store: Store) -> None:
        store.probe()
        spent = dict(store.requests)
        store.probe()

        assert dict(store.requests) == spent
        assert visible(store) == []

    def test_requests_are_counted_by_class(self, store: Store) -> None:
        store.put(KEY, b"x")
        store.get(KEY)
        store.head(KEY)
        list(store.list(""))
        store.delete([KEY])

        assert dict(store.requests) == {"put": 1, "get": 2, "list": 1, "delete": 1}
