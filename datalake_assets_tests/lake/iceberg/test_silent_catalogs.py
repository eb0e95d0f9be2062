"""A catalog that never answers, or never ends an answer, is waited for as long as one can take, by one feed alone."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyiceberg.catalog import sql as catalogs_in_databases
from sqlalchemy import create_engine

from datalake_assets.errors import TransientStoreError
from datalake_assets.feed_sources import IcebergTableSource
from datalake_assets.lake.iceberg import bounded_catalogs, iceberg_catalogs
from datalake_assets.lake.iceberg.iceberg_catalogs import load_others_table, load_table, open_catalog
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.s3_access import CatalogAccess
from datalake_assets_tests.lake.feeds import stream_feed
from datalake_assets_tests.lake.iceberg.iceberg_tables import create, sqlite_catalog
from datalake_assets_tests.silent_server import HELD_S, dripping, server, silent
from datalake_assets_tests.sources.sql.database_servers import Postgres

#: Seconds that an exchange may take here.
WHOLE_S, SILENT_S = 0.4, 0.2
#: The least that a REST catalog says of itself.
CONFIG = b'HTTP/1.1 200 OK\r\ncontent-length: 31\r\n\r\n{"defaults":{},"overrides": {}}'


def closing(_: socket.socket, over: threading.Event) -> None:
    pass


def something_else(connection: socket.socket, over: threading.Event) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\n<html>")


def silent_after_its_settings(connection: socket.socket, over: threading.Event) -> None:
    if b"/v1/config" in connection.recv(65536):
        connection.sendall(CONFIG)
    over.wait(HELD_S)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"CONNECT_S": 1.0, "SILENT_S": SILENT_S, "WHOLE_S": WHOLE_S}.items():
        monkeypatch.setattr(bounded_catalogs, name, seconds)


#: MySQL's greeting, of which 8,000 bytes are to come.
DRIPPING_MYSQL = dripping(b"\x40\x1f\x00\x00\x0a")


@pytest.fixture
def own_dialect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines share no dialect here, which they do elsewhere in tests, where all are of SQLite."""
    monkeypatch.setattr(catalogs_in_databases, "create_engine", create_engine)


def lake(folder: Path, uri: str = "", **access: str) -> Store:
    return open_store(str(folder / "lake"), catalog=CatalogAccess(uri=uri, **access))


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(silent, id="silent"),
        pytest.param(closing, id="closing"),
        pytest.param(something_else, id="something else"),
        pytest.param(dripping(b"HTTP/1.1 200 OK\r\nx-a: "), id="a head that drips"),
        pytest.param(dripping(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n"), id="a body that drips"),
        pytest.param(silent_after_its_settings, id="silent after its settings"),
    ],
)
@pytest.mark.parametrize("access", [{}, {"credential": "id:secret"}], ids=["open", "with tokens"])
def test_a_rest_catalog_that_does_not_answer_is_given_up(tmp_path, behaviour, access):
    with server(behaviour) as port:
        began = time.monotonic()
        with pytest.raises(TransientStoreError, match=r"http://127.0.0.1.*the catalog failed: "):
            load_table(lake(tmp_path, f"http://127.0.0.1:{port}", **access), stream_feed(format="iceberg"))
        assert time.monotonic() - began < HELD_S / 2


def test_a_catalog_of_pyicebergs_configuration_that_does_not_answer_is_given_up(tmp_path, monkeypatch):
    with server(silent) as port:
        monkeypatch.setenv("PYICEBERG_CATALOG__THEIRS__URI", f"http://127.0.0.1:{port}")
        source = IcebergTableSource(type="iceberg", table="n.t", catalog="theirs")
        with pytest.raises(TransientStoreError, match=r"theirs: the catalog failed: .*timed out"):
            load_others_table(lake(tmp_path), source)


DRIPPING = dripping(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")


@pytest.mark.parametrize("behaviour", [silent, DRIPPING], ids=["silent", "dripping"])
def test_a_server_of_tokens_that_does_not_answer_is_given_up(tmp_path, monkeypatch, behaviour):
    with server(behaviour) as port:
        monkeypatch.setenv("PYICEBERG_CATALOG__THEIRS__URI", f"http://127.0.0.1:{port}")
        oauth2 = {"client_id": "a", "client_secret": "b", "token_url": f"http://127.0.0.1:{port}/tokens"}
        configured = {"type": "rest", "uri": f"http://127.0.0.1:{port}", "auth": {"type": "oauth2", "oauth2": oauth2}}
        monkeypatch.setattr(iceberg_catalogs.Config, "get_catalog_config", lambda *_: configured)
        source = IcebergTableSource(type="iceberg", table="n.t", catalog="theirs")
        began = time.monotonic()
        with pytest.raises(TransientStoreError, match=r"theirs: the catalog failed: no whole answer within .* tokens"):
            load_others_table(lake(tmp_path), source)
        assert time.monotonic() - began < HELD_S / 2


#: Thrift's binary protocol: an answer whose name has 4,095 characters.
DRIPPING_THRIFT = dripping(b"\x80\x01\x00\x02\x00\x00\x0f\xff")


@pytest.mark.parametrize("behaviour", [silent, DRIPPING_THRIFT], ids=["silent", "dripping"])
def test_a_catalog_in_hive_that_does_not_answer_is_given_up(tmp_path, monkeypatch, behaviour):
    pytest.importorskip("thrift", reason="pip install 'pyiceberg[hive]'")
    with server(behaviour) as port:
        monkeypatch.setenv("PYICEBERG_CATALOG__THEIRS__URI", f"thrift://127.0.0.1:{port}")
        source = IcebergTableSource(type="iceberg", table="n.t", catalog="theirs")
        began = time.monotonic()
        with pytest.raises(TransientStoreError, match=r"theirs: the catalog failed: (read timeout|no whole answer)"):
            load_others_table(lake(tmp_path), source)
        assert time.monotonic() - began < HELD_S / 2


@pytest.mark.parametrize("behaviour", [silent, DRIPPING], ids=["silent", "dripping"])
@pytest.mark.parametrize("service", ["glue", "dynamodb"])
def test_a_catalog_in_a_service_of_aws_that_does_not_answer_is_given_up(tmp_path, monkeypatch, service, behaviour):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with server(behaviour) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("PYICEBERG_CATALOG__THEIRS__TYPE", service)
        source = IcebergTableSource(type="iceberg", table="n.t", catalog="theirs")
        began = time.monotonic()
        with pytest.raises(TransientStoreError, match=r"theirs: the catalog failed: .*[Tt]ime"):
            load_others_table(lake(tmp_path), source)
        assert time.monotonic() - began < HELD_S / 2


@pytest.mark.usefixtures("own_dialect")
def test_a_catalog_in_postgresql_that_does_not_answer_is_given_up(tmp_path):
    with (
        server(silent) as port,
        pytest.raises(TransientStoreError, match="the catalog's database failed: connection timeout"),
    ):
        load_table(lake(tmp_path, f"postgresql+psycopg://u@127.0.0.1:{port}/d"), stream_feed(format="iceberg"))


@pytest.mark.parametrize("behaviour", [silent, DRIPPING_MYSQL], ids=["silent", "dripping"])
def test_a_catalog_of_others_in_mysql_that_does_not_answer_is_given_up(tmp_path, behaviour):
    with server(behaviour) as port:
        source = IcebergTableSource(type="iceberg", table="n.t", catalog=f"mysql+pymysql://127.0.0.1:{port}/d")
        with pytest.raises(TransientStoreError, match=r"the catalog's database failed: .*timed out"):
            load_others_table(lake(tmp_path), source)


@pytest.mark.usefixtures("own_dialect")
@pytest.mark.xdist_group("databases")
def test_a_catalog_in_a_database_that_falls_silent_is_given_up(tmp_path, postgres: Postgres):
    name = postgres.database()
    store = lake(tmp_path, postgres.url(name).replace("postgresql:", "postgresql+psycopg:"))
    assert load_table(store, stream_feed(format="iceberg")) is None
    holder = postgres.session(name)
    try:
        holder.run("BEGIN; LOCK TABLE iceberg_tables")
        with pytest.raises(TransientStoreError, match="the catalog's database failed"):
            load_table(store, stream_feed(format="iceberg"))
    finally:
        holder.close()
    assert load_table(store, stream_feed(format="iceberg")) is None
    open_catalog(store).close()


def test_a_catalog_that_falls_silent_is_waited_for_once_and_not_by_each_of_its_tables(tmp_path, monkeypatch):
    now, asked = [0.0], []
    for module in (bounded_catalogs, iceberg_catalogs):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def attend(connection: socket.socket, over: threading.Event) -> None:
        asked.append(connection.recv(65536).partition(b"\r\n")[0])
        if b"/v1/config" in asked[-1]:
            connection.sendall(CONFIG)
        else:
            now[0] += 10
            over.wait(HELD_S)

    feed = stream_feed(format="iceberg")
    with server(attend) as port:
        store = lake(tmp_path, f"http://127.0.0.1:{port}")
        with pytest.raises(TransientStoreError, match="timed out"):
            load_table(store, feed)
        with pytest.raises(TransientStoreError, match="was silent a moment ago"):
            load_table(store, feed)
        now[0] += 10
        with pytest.raises(TransientStoreError, match="timed out"):
            load_table(store, feed)
    assert [each.split(b" ")[0] for each in asked] == [b"GET"] * 3  # the settings, and a table twice


def test_tables_of_other_catalogs_are_loaded_while_one_catalog_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(bounded_catalogs, "SILENT_S", HELD_S)
    monkeypatch.setattr(bounded_catalogs, "WHOLE_S", HELD_S)
    asked, failures = threading.Event(), []

    def attend(connection: socket.socket, over: threading.Event) -> None:
        asked.set()
        over.wait(HELD_S)

    with sqlite_catalog(tmp_path) as theirs:
        create(theirs)
        store = lake(tmp_path)
        there = IcebergTableSource(type="iceberg", table="n.t", catalog=f"sqlite:///{tmp_path}/catalog.db")
        with server(attend) as port:
            gone = IcebergTableSource(type="iceberg", table="n.t", catalog=f"http://127.0.0.1:{port}")

            def ask() -> None:
                try:
                    open_catalog(store, gone)
                except TransientStoreError as error:
                    failures.append(error)

            waiting = [threading.Thread(target=ask) for _ in range(3)]
            for each in waiting:
                each.start()
            assert asked.wait(HELD_S)
            assert load_others_table(store, there).name() == ("n", "t")
            assert failures == []
        for each in waiting:
            each.join()
        assert len(failures) == 3  # none of them has asked after the server was gone: it would have been refused
        assert len(set(map(str, failures))) == 1
