"""Who may use an S3 store, where it is, and that an unsafe one is refused: each told in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import obstore
import pytest

from datalake_assets.demo.s3_server import S3Server
from datalake_assets.errors import (
    ConfigError,
    LakeError,
    LakeUnavailable,
    ObjectNotFound,
    TransientStoreError,
    UnsafeStore,
)
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store import s3 as store_s3
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.s3 import S3Store
from datalake_assets.lake.store.s3_access import S3Access
from datalake_assets.lake.store.s3_clients import S3Clients
from datalake_assets_tests.fault_proxy import FaultProxy
from datalake_assets_tests.lake.s3_faults import KEY, stage

pytestmark = pytest.mark.s3


def every_call(store: Store) -> list[Callable[[], object]]:
    return [
        lambda: store.get(KEY),
        lambda: list(store.list("")),
        lambda: store.delete([KEY]),
        lambda: stage(store),
        lambda: list(store.list_staged("")),
    ]


def test_missing_bucket_is_told(s3_server: S3Server, s3_environment: dict[str, str]) -> None:
    store = open_store("s3://no-such-bucket/lake", s3=S3Access(endpoint=s3_server.endpoint))

    with pytest.raises(LakeUnavailable, match=r"^s3://no-such-bucket/lake: no such bucket; create the bucket"):
        list(store.list(""))
    with pytest.raises(LakeUnavailable, match="no such bucket"):
        store.get(KEY)


def test_who_reads_by_obstore_alone_makes_no_client_of_boto3(
    s3_server: S3Server, s3_environment: dict[str, str]
) -> None:
    access = S3Access(endpoint=s3_server.endpoint)
    S3Store(s3_server.bucket, "alone", s3=access).put("a", b"body")

    clients = S3Clients(s3_server.bucket, "", s3=access, timeout_s=10, lake="s3://lake")

    assert bytes(obstore.get(clients.obstore, "alone/a").bytes()) == b"body"
    assert "boto" not in vars(clients)


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
    store = open_store(s3_lake, s3=S3Access(endpoint=s3_server.endpoint))

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
        open_store("s3://lake/x", s3=S3Access(endpoint="http://127.0.0.1:1"))


def test_unknown_profile_is_told(s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")

    with pytest.raises(LakeUnavailable, match="check AWS_PROFILE"):
        open_store("s3://lake/x", s3=S3Access(endpoint="http://127.0.0.1:1"))


def test_unreachable_endpoint_is_transient(s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_s3, "ATTEMPTS", 2)
    store = S3Store("lake", "x", s3=S3Access(endpoint="http://127.0.0.1:1"), timeout_s=1)

    for call in [*every_call(store), lambda: store.create(KEY, b"")]:
        with pytest.raises(TransientStoreError, match="cannot be reached; start it, or correct the endpoint"):
            call()


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9000", "ftp://host", "http://user:hidden@host"])
def test_bad_endpoint_is_refused_without_being_shown(s3_environment: dict[str, str], endpoint: str) -> None:
    with pytest.raises(ConfigError, match="must be an http") as caught:
        open_store("s3://lake/x", s3=S3Access(endpoint=endpoint))

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
    store = open_store("s3://bucket/lake", s3=S3Access(endpoint=f"http://127.0.0.1:{careless.server_port}"))

    for _ in range(2):  # a failure is not remembered as a success
        with pytest.raises(UnsafeStore, match="overwrote an object despite"):
            store.probe()

    assert len(careless.deleted) == 2  # type: ignore[attr-defined]


def test_endpoint_comes_from_the_aws_environment(
    s3_server: S3Server, s3_lake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server.endpoint)
    store = open_store(s3_lake)

    store.put(KEY, b"x")

    assert store.get(KEY)[0] == b"x"
    assert store.filesystem().get_file_info(store.path(KEY)).size == 1


def test_lake_can_be_a_whole_bucket(s3_server: S3Server, s3_environment: dict[str, str]) -> None:
    store = open_store("s3://whole/", s3=S3Access(endpoint=s3_server.endpoint))
    store.put(KEY, b"x")

    assert (store.uri, store.path(""), store.path(KEY)) == ("s3://whole", "whole", f"whole/{KEY}")
    assert [info.key for info in store.list("")] == [KEY]
    store.delete([KEY])
    with pytest.raises(ObjectNotFound):
        store.get(KEY)
