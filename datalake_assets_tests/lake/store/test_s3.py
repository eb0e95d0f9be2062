"""What only S3 has: lost answers and faults, and what each of them is told as."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import boto3
import pytest

from datalake_assets.demo.s3_server import S3Server
from datalake_assets.errors import AmbiguousWrite, CorruptLake, PreconditionFailed, TransientStoreError, UploadGone
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store import s3 as store_s3
from datalake_assets.lake.store.base import StagedFile, Store
from datalake_assets.lake.store.s3 import S3Deletes, S3Store
from datalake_assets.lake.store.s3_access import S3Access
from datalake_assets_tests.fault_proxy import FaultProxy
from datalake_assets_tests.lake.s3_faults import DATA, KEY, behind, sent, stage

pytestmark = pytest.mark.s3


def test_lost_answer_to_a_create_is_ambiguous_and_not_repeated(faulty: S3Store, fault_proxy: FaultProxy) -> None:
    """A repeat would meet our own object, and be told that somebody else had won."""
    fault_proxy.add("drop_response", method="PUT")

    with pytest.raises(AmbiguousWrite, match="the answer to a write was lost"):
        faulty.create(KEY, b"ours")

    assert sent(fault_proxy, "PUT") == 1
    assert faulty.get(KEY)[0] == b"ours"


def test_lost_answer_to_a_swap_is_ambiguous_and_not_repeated(faulty: S3Store, fault_proxy: FaultProxy) -> None:
    etag = faulty.create(KEY, b"1")
    fault_proxy.clear()
    fault_proxy.add("drop_response", method="PUT")

    with pytest.raises(AmbiguousWrite):
        faulty.swap(KEY, b"2", etag=etag)

    assert sent(fault_proxy, "PUT") == 1
    assert faulty.get(KEY)[0] == b"2"


@pytest.mark.parametrize(("kind", "argument"), [("reset", None), ("status", (500, "InternalError"))])
def test_create_without_a_clear_answer_is_ambiguous(
    faulty: S3Store, fault_proxy: FaultProxy, kind: str, argument: object
) -> None:
    fault_proxy.add(kind, argument, method="PUT")  # type: ignore[arg-type]

    with pytest.raises(AmbiguousWrite):
        faulty.create(KEY, b"ours")

    assert sent(fault_proxy, "PUT") == 1


def test_create_without_an_answer_in_time_is_ambiguous(fault_proxy: FaultProxy, s3_lake: str) -> None:
    store = behind(fault_proxy, s3_lake, timeout_s=1)
    fault_proxy.add("stall", 4, method="PUT")

    with pytest.raises(AmbiguousWrite, match="ReadTimeoutError"):
        store.create(KEY, b"ours")

    assert sent(fault_proxy, "PUT") == 1


@pytest.mark.parametrize("refusal", [(503, "SlowDown"), (409, "ConditionalRequestConflict"), (429, "TooManyRequests")])
def test_create_is_repeated_when_surely_not_applied(
    faulty: S3Store, fault_proxy: FaultProxy, refusal: tuple[int, str]
) -> None:
    fault_proxy.add("status", refusal, times=2, method="PUT")

    etag = faulty.create(KEY, b"ours")

    assert faulty.get(KEY) == (b"ours", etag)
    assert faulty.requests["put"] == 3


@pytest.mark.parametrize("refusal", [(503, "SlowDown"), (409, "ConditionalRequestConflict")])
def test_create_is_transient_when_refused_for_long(
    faulty: S3Store, fault_proxy: FaultProxy, refusal: tuple[int, str]
) -> None:
    fault_proxy.add("status", refusal, times=-1, method="PUT")

    with pytest.raises(TransientStoreError, match=refusal[1]):
        faulty.create(KEY, b"ours")

    assert sent(fault_proxy, "PUT") == 3


def test_swap_is_lost_when_the_store_says_404(faulty: S3Store, fault_proxy: FaultProxy) -> None:
    """AWS answers If-Match on an absent key with 404, others with 412."""
    fault_proxy.add("status", (404, "NoSuchKey"), method="PUT")

    with pytest.raises(PreconditionFailed):
        faulty.swap(KEY, b"x", etag="0" * 32)


def test_put_is_repeated_after_a_lost_answer(faulty: S3Store, fault_proxy: FaultProxy) -> None:
    fault_proxy.add("drop_response", method="PUT")

    faulty.put(KEY, b"summary")

    assert sent(fault_proxy, "PUT") == 2


@pytest.mark.parametrize(
    ("kind", "argument"), [("truncate", None), ("reset", None), ("stall", 0.2), ("status", (503, "SlowDown"))]
)
def test_read_survives_one_fault(faulty: S3Store, fault_proxy: FaultProxy, kind: str, argument: object) -> None:
    faulty.put(KEY, b"x" * 100_000)
    fault_proxy.add(kind, argument, method="GET")  # type: ignore[arg-type]

    assert faulty.get(KEY)[0] == b"x" * 100_000


@pytest.mark.parametrize(
    "read", [lambda store: store.get(KEY), lambda store: store.head(KEY), lambda store: list(store.list(""))]
)
def test_read_is_transient_when_the_store_stays_busy(
    faulty: S3Store, fault_proxy: FaultProxy, read: Callable[[Store], object]
) -> None:
    fault_proxy.add("status", (503, "SlowDown"), times=-1)

    with pytest.raises(TransientStoreError):
        read(faulty)


def test_lost_answer_to_a_publish_is_ambiguous(faulty: S3Store, fault_proxy: FaultProxy) -> None:
    file = stage(faulty)
    fault_proxy.add("drop_response", method="POST")

    with pytest.raises(AmbiguousWrite, match=r"data_1\.parquet"):
        faulty.publish(file)

    assert faulty.get(DATA)[0] == b"rows"
    assert not faulty.has_staged(file)


def test_publish_error_inside_an_answer_of_200_is_ambiguous(faulty: S3Store, fault_proxy: FaultProxy) -> None:
    file = stage(faulty)
    fault_proxy.add("status", (200, "InternalError"), method="POST")

    with pytest.raises(AmbiguousWrite):
        faulty.publish(file)


def test_publish_waits_for_a_busy_store(faulty: S3Store, fault_proxy: FaultProxy) -> None:
    file = stage(faulty)
    fault_proxy.add("status", (503, "SlowDown"), method="POST")

    faulty.publish(file)

    assert faulty.get(DATA)[0] == b"rows"


def test_publish_of_parts_that_were_never_uploaded_is_corrupt(s3_store: Store) -> None:
    file = stage(s3_store)

    with pytest.raises(CorruptLake, match="refuses to join"):
        s3_store.publish(StagedFile(DATA, 4, file.token, ("0" * 32,)))

    assert s3_store.has_staged(file)


def test_publish_of_an_unknown_upload_is_gone(s3_store: Store) -> None:
    with pytest.raises(UploadGone):
        s3_store.publish(StagedFile(DATA, 4, "no-such-upload", ("0" * 32,)))


def test_part_is_uploaded_again_after_a_fault(faulty: S3Store, fault_proxy: FaultProxy) -> None:
    for kind in ("reset", "drop_response"):
        fault_proxy.add(kind, method="PUT", path="partNumber=2")  # type: ignore[arg-type]
    body = bytes(range(256)) * 80_000

    faulty.publish(stage(faulty, body))

    assert faulty.get(DATA)[0] == body


def test_writer_fails_when_a_part_cannot_be_uploaded(faulty: S3Store, fault_proxy: FaultProxy) -> None:
    fault_proxy.add("status", (503, "SlowDown"), times=-1, path="partNumber")

    with pytest.raises(TransientStoreError):
        stage(faulty, b"x" * 9_000_000)

    fault_proxy.clear()
    assert list(faulty.list_staged("")) == []


def test_small_file_costs_three_put_requests(s3_store: Store) -> None:
    s3_store.publish(stage(s3_store))

    assert dict(s3_store.requests) == {"put": 3, "get": 0, "list": 0, "delete": 0}


def test_writer_without_a_whole_part_costs_nothing_when_discarded(s3_store: Store) -> None:
    with s3_store.stage(DATA) as sink:
        sink.write(b"x" * 1_000_000)

    assert sum(s3_store.requests.values()) == 0


def test_list_staged_pages(s3_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    client = s3_store._boto  # type: ignore[attr-defined]
    whole = client.list_multipart_uploads
    monkeypatch.setattr(client, "list_multipart_uploads", lambda **kwargs: whole(MaxUploads=2, **kwargs))
    tokens = {s3_store._parts.begin_upload(f"streams/{name}") for name in "aaabb"}  # type: ignore[attr-defined]

    assert sorted(upload.token for upload in s3_store.list_staged("streams")) == sorted(tokens)


def test_delete_fails_when_one_key_does_inside_an_answer_of_200(
    s3_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [{"Key": "k", "Code": "InternalError", "Message": ""}]
    monkeypatch.setattr(s3_store._boto, "delete_objects", lambda **_: {"Errors": errors})  # type: ignore[attr-defined]

    with pytest.raises(TransientStoreError, match="not acknowledged"):
        s3_store.delete(["a"])


def test_delete_fails_when_a_key_is_not_mentioned(s3_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_store._boto, "delete_objects", lambda **_: {"Deleted": []})  # type: ignore[attr-defined]

    with pytest.raises(TransientStoreError, match="not acknowledged"):
        s3_store.delete(["a"])


def test_delete_if_is_repeated_after_a_lost_answer(faulty: S3Store, fault_proxy: FaultProxy) -> None:
    faulty.put(DATA, b"rows")
    info = faulty.head(DATA)
    assert info
    assert faulty.delete_if({}) == ()
    fault_proxy.add("drop_response", times=1, method="POST")

    assert faulty.delete_if({DATA: info.etag}) == ()
    assert faulty.head(DATA) is None


def test_delete_if_looks_first_when_the_server_ignores_its_condition(
    s3_store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_s3, "_conditional_deletes", {})
    monkeypatch.setattr(S3Deletes, "are_conditional", lambda *_: False)
    monkeypatch.setattr(S3Deletes, "delete_if", None)
    etags = {}
    for key in ("a/1", "a/2"):
        s3_store.put(key, b"rows")
        info = s3_store.head(key)
        assert info
        etags[key] = info.etag
    s3_store.put("a/1", b"other rows")

    with caplog.at_level("WARNING"):
        assert s3_store.delete_if(etags) == ("a/1",)
        assert s3_store.delete_if(etags) == ("a/1",)
    assert [info.key for info in s3_store.list("")] == ["a/1"]
    assert [each.getMessage() for each in caplog.records] == [
        f"{s3_store.uri} ignores If-Match on deletes: files are looked at before each delete"
    ]


def test_delete_is_repeated_after_a_lost_answer(faulty: S3Store, fault_proxy: FaultProxy) -> None:
    faulty.put(KEY, b"x")
    fault_proxy.add("drop_response", method="POST")

    faulty.delete([KEY])

    assert faulty.head(KEY) is None


def test_folder_marker_and_reserved_objects_do_no_harm(s3_server: S3Server, s3_store: Store, s3_lake: str) -> None:
    """The AWS console makes "folders": empty objects whose key ends with a slash."""
    prefix = s3_lake.partition("//")[2].partition("/")[2]
    client = boto3.Session().client("s3", endpoint_url=s3_server.endpoint, region_name="us-east-1")
    client.put_object(Bucket="lake", Key=f"{prefix}/.staging/probe-left-by-a-crash", Body=b"x")
    client.put_object(Bucket="lake", Key=f"{prefix}/folder/", Body=b"")
    client.close()

    assert [(info.key, info.size_bytes) for info in s3_store.list("")] == [("folder", 0)]


def test_store_goes_away_with_its_last_reference(s3_store: Store, s3_lake: str, s3_server: S3Server) -> None:
    """Its connections, too, without Python's look for cycles: an unclosed one would be a warning, and a failure."""
    gc.collect()
    gc.disable()
    try:
        before = sockets()
        store = open_store(s3_lake, s3=S3Access(endpoint=s3_server.endpoint))
        store.publish(stage(store))
        list(store.list(""))
        store.delete_if({DATA: store.get(DATA)[1]})
        gone, opened = weakref.ref(store), sockets() - before
        del store
        assert gone() is None
        assert opened
        end = time.monotonic() + 10  # obstore's are closed by a thread of its own
        while left := opened & sockets():
            assert time.monotonic() < end, left
            time.sleep(0.01)
    finally:
        gc.enable()


def sockets() -> set[str]:
    """Sockets that this process holds."""
    links = set()
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            links.add(str(each.readlink()))
    return {each for each in links if each.startswith("socket:")}
