"""One way to other machines: which proxy, and whose certificates; and that every client goes it."""

from __future__ import annotations

import contextlib
import http.server
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import obstore
import pytest
import stamina
import trustme
from botocore.exceptions import BotoCoreError, ClientError
from botocore.loaders import JSONFileLoader

from datalake_assets.defs.upkeep.sensors import reload_location
from datalake_assets.errors import ConfigError, SourceError
from datalake_assets.lake.iceberg.bounded_catalogs import bounded_glue
from datalake_assets.lake.store.s3_access import S3Access
from datalake_assets.lake.store.s3_clients import S3Clients
from datalake_assets.network import aws_client, route_to
from datalake_assets.sources.aws_clients import AwsClients
from datalake_assets.sources.ksqldb.client import KsqlClient

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUEST_METHOD")
PROXY = "http://proxy.test:3128"


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("url", "environment", "proxied"),
    [
        ("http://ksql.test", {"HTTP_PROXY": PROXY}, True),
        ("http://ksql.test", {"http_proxy": PROXY}, True),
        ("http://ksql.test", {"HTTP_PROXY": PROXY, "REQUEST_METHOD": "GET"}, False),
        ("http://ksql.test", {"HTTPS_PROXY": PROXY}, False),
        ("https://ksql.test", {"HTTPS_PROXY": PROXY}, True),
        ("https://ksql.test", {"ALL_PROXY": PROXY}, True),
        ("https://ksql.test", {"HTTPS_PROXY": "proxy.test:3128"}, True),
        ("http://localhost:8088", {"ALL_PROXY": PROXY}, False),
        ("http://lake.localhost", {"ALL_PROXY": PROXY}, False),
        ("http://127.8.9.1:8088", {"HTTP_PROXY": PROXY}, False),
        ("http://[::1]:8088", {"ALL_PROXY": PROXY}, False),
        ("http://ksql.test", {"HTTP_PROXY": PROXY, "NO_PROXY": "*"}, False),
        ("http://ksql.test", {"HTTP_PROXY": PROXY, "no_proxy": "a.test, ksql.test"}, False),
        ("http://a.ksql.test", {"HTTP_PROXY": PROXY, "NO_PROXY": "ksql.test"}, False),
        ("http://a.ksql.test", {"HTTP_PROXY": PROXY, "NO_PROXY": ".ksql.test"}, False),
        ("http://a.ksql.test", {"HTTP_PROXY": PROXY, "NO_PROXY": "*.ksql.test"}, False),
        ("http://myksql.test", {"HTTP_PROXY": PROXY, "NO_PROXY": "ksql.test"}, True),
        ("http://KSQL.test:8088", {"HTTP_PROXY": PROXY, "NO_PROXY": "ksql.test:8088"}, False),
        ("http://ksql.test:8089", {"HTTP_PROXY": PROXY, "NO_PROXY": "ksql.test:8088"}, True),
        ("https://ksql.test", {"ALL_PROXY": PROXY, "NO_PROXY": "ksql.test:443"}, False),
        ("http://10.1.2.3", {"HTTP_PROXY": PROXY, "NO_PROXY": "10.0.0.0/8"}, False),
        ("http://11.1.2.3", {"HTTP_PROXY": PROXY, "NO_PROXY": "10.0.0.0/8"}, True),
        ("http://[fd00::1]", {"HTTP_PROXY": PROXY, "NO_PROXY": "fd00::/8"}, False),
        ("http://ksql.test", {"HTTP_PROXY": "", "NO_PROXY": ""}, False),
    ],
)
def test_the_proxy_follows_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, url: str, environment: dict[str, str], *, proxied: bool
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    route = route_to(url)
    assert (route.proxy.url if route.proxy else None) == (PROXY if proxied else None)


def test_a_proxys_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://u%40x:p%3Aw@proxy.test")
    proxy = route_to("https://ksql.test").proxy
    assert proxy is not None
    assert (proxy.user, proxy.password, proxy.port) == ("u@x", "p:w", 80)
    assert "p:w" not in repr(proxy)
    assert "p%3Aw" not in repr(proxy)


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"ALL_PROXY": "socks5://proxy.test:1080"}, "ALL_PROXY: socks5 proxies are not supported; name an http:// one"),
        ({"HTTP_PROXY": "http://"}, "HTTP_PROXY is not the URL of a proxy"),
        ({"HTTP_PROXY": "http://proxy.test:none"}, "HTTP_PROXY is not the URL of a proxy"),
        ({"HTTP_PROXY": "http://proxy..test:1"}, "HTTP_PROXY is not the URL of a proxy"),
        ({"AWS_CA_BUNDLE": "/nowhere.pem"}, "AWS_CA_BUNDLE: '/nowhere.pem' is not a readable PEM file"),
        ({"SSL_CERT_FILE": __file__}, "SSL_CERT_FILE: .* is not a readable PEM file"),
    ],
)
def test_what_cannot_work_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], reason: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=reason):
        route_to("http://ksql.test")


def test_clients_of_aws_read_the_description_of_a_service_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")

    def make_clients() -> None:
        aws_client("glue").close()
        AwsClients("sqs", "eu-west-1", None).client().close()
        AwsClients("kinesis", "eu-west-1", None).client().close()
        bounded_glue("lake", {"glue.region": "eu-west-1"})

    make_clients()
    read: list[str] = []
    load = JSONFileLoader.load_file
    monkeypatch.setattr(JSONFileLoader, "load_file", lambda self, path: read.append(path) or load(self, path))
    make_clients()

    assert read == []


def test_authorities_are_loaded_once_and_for_tls_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each S3 store and each client asks; loading a system's takes some 30 ms."""
    file = tmp_path / "own.pem"
    file.write_bytes(trustme.CA().cert_pem.bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    loaded, load = [], ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda **named: loaded.append(named) or load(**named))

    for _ in range(3):
        assert route_to("http://ksql.test").for_httpx()["verify"] is False
    assert loaded == [{"cafile": file}]
    assert isinstance(route_to("https://ksql.test").for_httpx()["verify"], ssl.SSLContext)
    monkeypatch.setenv("HTTP_PROXY", "https://proxy.test:3128")
    assert isinstance(route_to("http://ksql.test").for_httpx()["verify"], ssl.SSLContext)
    file.write_text("damaged")
    with pytest.raises(ConfigError, match="not a readable PEM file"):
        route_to("http://ksql.test")


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")  # type: ignore[attr-defined]
        self.send_response(404)
        self.send_header("content-length", "0")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True

    do_HEAD = do_POST = do_GET  # noqa: N815  the names that the server looks for

    def log_message(self, *_: object) -> None: ...


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[str] = []

    def handle_error(self, *_: object) -> None: ...


@pytest.fixture
def serve() -> Iterator[Callable[[], _Server]]:
    running: list[_Server] = []

    def start() -> _Server:
        running.append(_Server())
        threading.Thread(target=running[-1].serve_forever, args=(0.05,), daemon=True).start()
        return running[-1]

    yield start
    for each in running:
        each.shutdown()
        each.server_close()


def ask_ksqldb(url: str) -> None:
    client = KsqlClient(url, timeout_s=3)
    with stamina.set_testing(True, attempts=1), contextlib.suppress(SourceError):
        _ = client.version
    client.close()


def _clients(url: str) -> S3Clients:
    return S3Clients("b", "", s3=S3Access(endpoint=url), timeout_s=3, lake="s3://b")


def ask_boto(url: str) -> None:
    clients = _clients(url)
    with contextlib.suppress(BotoCoreError, ClientError):
        clients.boto.head_object(Bucket="b", Key="k")
    clients.boto.close()


def ask_obstore(url: str) -> None:
    clients = _clients(url)
    with contextlib.suppress(obstore.exceptions.BaseError, FileNotFoundError):
        obstore.head(clients.obstore, "k")
    clients.boto.close()


def ask_arrow(url: str) -> None:
    clients = _clients(url)
    with contextlib.suppress(OSError):
        clients.arrow().get_file_info("b/k")
    clients.boto.close()


def ask_dagster(url: str) -> None:
    assert reload_location(url, "datalake") is not None


CLIENTS = [ask_ksqldb, ask_dagster, ask_boto, ask_obstore, ask_arrow]
every_client = pytest.mark.parametrize("ask", CLIENTS, ids=lambda each: each.__name__.removeprefix("ask_"))


@every_client
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_every_client_reaches_loopback_directly(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[[], _Server], ask: Callable[[str], None], variable: str
) -> None:
    server, proxy = serve(), serve()
    monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.server_port}")
    ask(f"http://127.0.0.1:{server.server_port}")
    assert (bool(server.asked), proxy.asked) == (True, [])


@every_client
def test_every_client_takes_the_proxy_to_other_hosts(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[[], _Server], ask: Callable[[str], None]
) -> None:
    proxy = serve()
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{proxy.server_port}")
    ask("http://far.test:9000")
    assert proxy.asked
    assert all(" http://far.test:9000/" in each for each in proxy.asked)


@every_client
def test_every_client_heeds_no_proxy(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[[], _Server], ask: Callable[[str], None]
) -> None:
    proxy = serve()
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.server_port}")
    monkeypatch.setenv("NO_PROXY", "other.test,far.invalid")
    ask("http://far.invalid:9000")  # nobody has that name, so it is looked for in vain
    assert proxy.asked == []


def _speak_tls(server: _Server, authority: trustme.CA) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True)


@every_client
@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_every_client_trusts_the_private_authority(
    monkeypatch: pytest.MonkeyPatch,
    serve: Callable[[], _Server],
    tmp_path: Path,
    ask: Callable[[str], None],
    variable: str,
) -> None:
    authority, server = trustme.CA(), serve()
    _speak_tls(server, authority)
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv(variable, str(tmp_path / "authority.pem"))
    ask(f"https://localhost:{server.server_port}")
    assert server.asked


@every_client
@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_no_client_trusts_an_authority_of_the_system_besides(
    monkeypatch: pytest.MonkeyPatch,
    serve: Callable[[], _Server],
    tmp_path: Path,
    ask: Callable[[str], None],
    variable: str,
) -> None:
    authority, server = trustme.CA(), serve()
    _speak_tls(server, authority)
    (tmp_path / "system").mkdir()
    authority.cert_pem.write_to_path(str(tmp_path / "system/authority.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "system"))
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "private.pem"))
    monkeypatch.setenv(variable, str(tmp_path / "private.pem"))
    ask(f"https://localhost:{server.server_port}")
    assert server.asked == []
