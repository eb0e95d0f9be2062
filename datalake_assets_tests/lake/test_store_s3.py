"""What only S3 has: lost answers, refusals, unsafe servers, and what each of them is told as."""

from __future__ import annotations

import gc
import hashlib
import random
import weakref
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import boto3
import pytest

from datalake_assets.demo.s3 import S3Server
from datalake_assets.errors import (
    AmbiguousWrite,
    ConfigError,
    CorruptLake,
    LakeError,
    LakeUnavailable,
    ObjectNotFound,
    PreconditionFailed,
    TransientStoreError,
    UnsafeStore,
    UploadGone,
)
from datalake_assets.lake import store_s3
from datalake_assets.lake.s3_deletes import S3Deletes
from datalake_assets.lake.s3_upload import COPY_BYTES, MIN_PART_BYTES, _even_parts
from datalake_assets.lake.store import StagedFile, Store, open_store
from datalake_assets.lake.store_s3 import S3Store
from datalake_assets_tests.fault_proxy import FaultProxy

pytestmark = pytest.mark.s3

KEY = "control/streams/payments/manifest.json"
DATA = "streams/payments/day=01/data_1.parquet"


@pytest.fixture
def faulty(s3_lake: str, fault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """A lake behind the proxy."""
    monkeypatch.setattr(store_s3, "ATTEMPTS", 3)
    return behind(fault_proxy, s3_lake, timeout_s=20)


def behind(proxy: FaultProxy, lake: str, *, timeout_s: float) -> S3Store:
    bucket, _, prefix = lake.removeprefix("s3://").partition("/")
    return S3Store(bucket, prefix, endpoint=proxy.url, timeout_s=timeout_s)


def stage(store: Store, body: bytes = b"rows") -> StagedFile:
    with store.stage(DATA) as sink:
        sink.write(body)
        return sink.finish()


def sent(proxy: FaultProxy, method: str) -> int:
    return sum(entry[0] == method for entry in proxy.log)


# ---- conditional writes


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
    store = behind(fault_proxy, s3_lake, timeout_s=0.3)
    fault_proxy.add("stall", 1, method="PUT")

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


# ---- reads


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


# ---- staged files


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


# ---- server-side copies


MIB = 1 << 20
SOURCE = "streams/payments/day=01/source.parquet"


@pytest.fixture
def source(s3_store: Store) -> tuple[bytes, str]:
    """A file of 30 MiB: its bytes and ETag."""
    body = random.Random(7).randbytes(30 * MIB)
    etag = s3_store.put(SOURCE, body)
    return body, etag


def counted(store: Store, operation: str) -> list[dict[str, Any]]:
    """What is asked of boto3 from now on, by this operation."""
    asked: list[dict[str, Any]] = []
    register = store._boto.meta.events.register  # type: ignore[attr-defined]
    register(f"provide-client-params.s3.{operation}", lambda params, **_: asked.append(params))
    return asked


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize(
    ("before", "spans"),
    [
        (0, [(0, 30 * MIB)]),
        (4, [(4, 20 * MIB)]),
        (6 * MIB, [(100, 6 * MIB), (7 * MIB, 30 * MIB)]),
        (4, [(0, 10), (10 * MIB, 15 * MIB), (15 * MIB, 15 * MIB + 1), (1, 12 * MIB)]),
        (9 * MIB, [(0, 5 * MIB), (0, 5 * MIB - 1), (20 * MIB, 30 * MIB)]),
    ],
)
def test_copied_ranges_are_the_objects_bytes(
    s3_store: Store, source: tuple[bytes, str], before: int, spans: list[tuple[int, int]], *, verify: bool
) -> None:
    body, etag = source
    seen = bytearray()
    with s3_store.stage(DATA) as sink:
        sink.write(bytes(before))
        for start, end in spans:
            sink.copy_range(SOURCE, start, end, etag=etag, seen=seen.extend if verify else None)  # type: ignore[attr-defined]
        sink.write(b"footer")
        file = sink.finish()
    s3_store.publish(file)

    expected = b"".join(body[start:end] for start, end in spans)
    assert s3_store.get(DATA)[0] == bytes(before) + expected + b"footer"
    assert file.size_bytes == before + len(expected) + 6
    assert bytes(seen) == (expected if verify else b"")


def test_copied_bytes_do_not_pass_through_here(s3_store: Store, source: tuple[bytes, str]) -> None:
    reads, copies, parts = (counted(s3_store, name) for name in ("GetObject", "UploadPartCopy", "UploadPart"))
    with s3_store.stage(DATA) as sink:
        sink.write(b"PAR1")
        sink.copy_range(SOURCE, 4, 30 * MIB, etag=source[1])  # type: ignore[attr-defined]
        sink.copy_range(SOURCE, 0, 30 * MIB, etag=source[1])  # type: ignore[attr-defined]
        sink.finish()

    assert [each["Range"] for each in reads] == [f"bytes=4-{5 * MIB - 1}"]  # makes the first part large enough
    assert [each["CopySourceRange"] for each in copies] == [
        f"bytes={5 * MIB}-{30 * MIB - 1}",
        f"bytes=0-{30 * MIB - 1}",
    ]
    assert len(parts) == 1


def test_copied_part_whose_etag_tells_nothing_is_uploaded(s3_store: Store, source: tuple[bytes, str]) -> None:
    """SeaweedFS says the MD5 of a copied part only if it is one chunk; S3 with KMS keys never does."""
    copies, parts = (counted(s3_store, name) for name in ("UploadPartCopy", "UploadPart"))
    with s3_store.stage(DATA) as sink:
        sink.copy_range(SOURCE, 0, 30 * MIB, etag=source[1], seen=lambda _: None)  # type: ignore[attr-defined]
        sink.copy_range(SOURCE, 0, 30 * MIB, etag=source[1], seen=lambda _: None)  # type: ignore[attr-defined]
        s3_store.publish(sink.finish())

    assert s3_store.get(DATA)[0] == source[0] * 2
    assert len(copies) <= 3  # those that were under way when the first one told
    assert len(parts) > len(copies)  # each of theirs, and the rest


def test_copied_part_whose_etag_is_its_md5_is_not_uploaded(
    s3_store: Store, source: tuple[bytes, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on S3 itself."""
    copies, parts = (counted(s3_store, name) for name in ("UploadPartCopy", "UploadPart"))
    copy = s3_store._parts.copy_part  # type: ignore[attr-defined]

    def plain(key: str, upload_id: str, number: int, **options: Any) -> str:
        copy(key, upload_id, number, **options)
        span = options["span"]
        return hashlib.md5(source[0][span.start : span.stop]).hexdigest()  # noqa: S324  # S3's ETag

    monkeypatch.setattr(s3_store._parts, "copy_part", plain)  # type: ignore[attr-defined]
    with s3_store.stage(DATA) as sink:
        sink.copy_range(SOURCE, 0, 30 * MIB, etag=source[1], seen=lambda _: None)  # type: ignore[attr-defined]
        sink.finish()

    assert (len(copies), len(parts)) == (2, 0)


@pytest.mark.parametrize("end", [1000, 30 * MIB])
@pytest.mark.parametrize("there", ["changed", "gone"])
def test_copy_of_an_object_that_changed_is_refused(
    s3_store: Store, source: tuple[bytes, str], there: str, end: int
) -> None:
    if there == "gone":
        s3_store.delete([SOURCE])
    else:
        s3_store.put(SOURCE, bytes(30 * MIB))

    def copy() -> None:
        with s3_store.stage(DATA) as sink:
            sink.copy_range(SOURCE, 0, end, etag=source[1])  # type: ignore[attr-defined]
            sink.finish()  # parts that are under way tell at the end

    with pytest.raises(PreconditionFailed, match=r"source\.parquet"):
        copy()
    assert list(s3_store.list_staged("")) == []


def test_copied_parts_are_no_larger_than_an_answer_can_wait_for() -> None:
    spans = list(_even_parts(7, 7 + 200 * MIB, COPY_BYTES))

    assert [span.start for span in spans[1:]] == [span.stop for span in spans[:-1]]
    assert (spans[0].start, spans[-1].stop) == (7, 7 + 200 * MIB)
    assert all(MIN_PART_BYTES <= len(span) <= COPY_BYTES for span in spans)


# ---- deletes


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


# ---- refusals, in one line each


def every_call(store: Store) -> list[Callable[[], object]]:
    return [
        lambda: store.get(KEY),
        lambda: list(store.list("")),
        lambda: store.delete([KEY]),
        lambda: stage(store),
        lambda: list(store.list_staged("")),
    ]


def test_missing_bucket_is_told(s3_server: S3Server, s3_environment: dict[str, str]) -> None:
    store = open_store("s3://no-such-bucket/lake", s3_endpoint=s3_server.endpoint)

    with pytest.raises(LakeUnavailable, match=r"^s3://no-such-bucket/lake: no such bucket; create the bucket"):
        list(store.list(""))
    with pytest.raises(LakeUnavailable, match="no such bucket"):
        store.get(KEY)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong" * 8, "the secret key is wrong; check the credentials"),
        ("AWS_ACCESS_KEY_ID", "nobody", "the access key is not known there; check the credentials"),
    ],
)
def test_wrong_credentials_are_told_and_never_shown(
    s3_server: S3Server, s3_lake: str, monkeypatch: pytest.MonkeyPatch, *, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    store = open_store(s3_lake, s3_endpoint=s3_server.endpoint)

    for call in every_call(store):
        with pytest.raises(LakeUnavailable, match=words) as caught:
            call()
        assert value not in str(caught.value)
    with pytest.raises(LakeUnavailable, match="access denied"):
        store.head(KEY)  # the answer to a HEAD has no body to say more


def test_missing_credentials_are_told(s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    with pytest.raises(LakeUnavailable, match="no S3 credentials were found; set AWS_ACCESS_KEY_ID"):
        open_store("s3://lake/x", s3_endpoint="http://127.0.0.1:1")


def test_unknown_profile_is_told(s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")

    with pytest.raises(LakeUnavailable, match="check AWS_PROFILE"):
        open_store("s3://lake/x", s3_endpoint="http://127.0.0.1:1")


def test_unreachable_endpoint_is_transient(s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_s3, "ATTEMPTS", 2)
    store = S3Store("lake", "x", endpoint="http://127.0.0.1:1", timeout_s=1)

    for call in [*every_call(store), lambda: store.create(KEY, b"")]:
        with pytest.raises(TransientStoreError, match="cannot be reached; start it, or correct the endpoint"):
            call()


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9000", "ftp://host", "http://user:hidden@host"])
def test_bad_endpoint_is_refused_without_being_shown(s3_environment: dict[str, str], endpoint: str) -> None:
    with pytest.raises(ConfigError, match="must be an http") as caught:
        open_store("s3://lake/x", s3_endpoint=endpoint)

    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        ((403, "AccessDenied"), LakeUnavailable),
        ((403, "ExpiredToken"), LakeUnavailable),
        ((301, "PermanentRedirect"), LakeUnavailable),
        ((501, "NotImplemented"), UnsafeStore),
        ((400, "SomethingNew"), LakeUnavailable),
        ((404, "NoSuchBucket"), LakeUnavailable),
    ],
)
def test_refused_write_is_told_apart(
    faulty: S3Store, fault_proxy: FaultProxy, refusal: tuple[int, str], kind: type[LakeError]
) -> None:
    fault_proxy.add("status", refusal, method="PUT")

    with pytest.raises(kind):
        faulty.create(KEY, b"x")


# ---- the rest


class _Careless(BaseHTTPRequestHandler):
    """An S3 server that accepts conditional headers and ignores them, as some do."""

    protocol_version = "HTTP/1.1"
    overwrites = True

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        seen: set[str] = self.server.seen  # type: ignore[attr-defined]
        conflict = "If-None-Match" in self.headers and self.path in seen and not self.overwrites
        seen.add(self.path)
        self._answer(412 if conflict else 200, b"<Error><Code>PreconditionFailed</Code></Error>" if conflict else b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        key = body.partition("<Key>")[2].partition("</Key>")[0]
        self.server.deleted.append(key)  # type: ignore[attr-defined]
        self._answer(200, f"<DeleteResult><Deleted><Key>{key}</Key></Deleted></DeleteResult>".encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("ETag", '"0123"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class _HalfCareless(_Careless):
    overwrites = False


@pytest.fixture(params=[_Careless, _HalfCareless])
def careless(request: pytest.FixtureRequest) -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), request.param) as server:
        server.daemon_threads = True
        server.seen, server.deleted = set(), []  # type: ignore[attr-defined]
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_probe_refuses_a_store_that_ignores_conditions(
    careless: ThreadingHTTPServer, s3_environment: dict[str, str]
) -> None:
    store = open_store("s3://bucket/lake", s3_endpoint=f"http://127.0.0.1:{careless.server_port}")

    for _ in range(2):  # a failure is not remembered as a success
        with pytest.raises(UnsafeStore, match="overwrote an object despite"):
            store.probe()

    assert len(careless.deleted) == 2  # type: ignore[attr-defined]


def test_folder_marker_and_reserved_objects_do_no_harm(s3_server: S3Server, s3_store: Store, s3_lake: str) -> None:
    """The AWS console makes "folders": empty objects whose key ends with a slash."""
    prefix = s3_lake.partition("//")[2].partition("/")[2]
    client = boto3.client("s3", endpoint_url=s3_server.endpoint, region_name="us-east-1")
    client.put_object(Bucket="lake", Key=f"{prefix}/.staging/probe-left-by-a-crash", Body=b"x")
    client.put_object(Bucket="lake", Key=f"{prefix}/folder/", Body=b"")
    client.close()

    assert [(info.key, info.size_bytes) for info in s3_store.list("")] == [("folder", 0)]


def test_store_goes_away_with_its_last_reference(s3_store: Store, s3_lake: str, s3_server: S3Server) -> None:
    """Its connections too: an unclosed one would be a warning, and so a failure."""
    store = open_store(s3_lake, s3_endpoint=s3_server.endpoint)
    store.publish(stage(store))
    gone = weakref.ref(store)

    del store
    gc.collect()

    assert gone() is None


def test_endpoint_comes_from_the_aws_environment(
    s3_server: S3Server, s3_lake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server.endpoint)
    store = open_store(s3_lake)

    store.put(KEY, b"x")

    assert store.get(KEY)[0] == b"x"
    assert store.filesystem().get_file_info(store.path(KEY)).size == 1


def test_lake_can_be_a_whole_bucket(s3_server: S3Server, s3_environment: dict[str, str]) -> None:
    store = open_store("s3://whole/", s3_endpoint=s3_server.endpoint)
    store.put(KEY, b"x")

    assert (store.uri, store.path(""), store.path(KEY)) == ("s3://whole", "whole", f"whole/{KEY}")
    assert [info.key for info in store.list("")] == [KEY]
    store.delete([KEY])
    with pytest.raises(ObjectNotFound):
        store.get(KEY)
