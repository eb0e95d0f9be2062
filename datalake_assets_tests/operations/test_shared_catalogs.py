"""The write API over a lake in S3, whose tenants share a catalog: the real REST catalog, and Glue as moto serves it.

Moto takes every commit whatever it was built on, so that what happens to two writers at once is shown on REST alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner

from datalake_assets.cli.app import app
from datalake_assets.lake.iceberg import record_appends
from datalake_assets.lake.iceberg.tenant_tables import TenantTables
from datalake_assets.lake.tables import open_table
from datalake_assets.operations import Operations
from datalake_assets_tests.fault_proxy import FaultProxy
from datalake_assets_tests.lake.feeds import numbered, stream_feed, stream_of
from datalake_assets_tests.operations.conftest import ORDERS, SCHEMA
from datalake_assets_tests.operations.shared_catalogs import SharedCatalog, glue_server, ready_rest_catalog
from datalake_assets_tests.processes.warm_processes import COLD

pytestmark = pytest.mark.s3

RIVAL = {**ORDERS, "tenant_id": "rival"}


@pytest.fixture(scope="module")
def glue():
    with glue_server() as url:
        yield url


@pytest.fixture(scope="module")
def _ready(s3_server):
    return ready_rest_catalog(s3_server)


@pytest.fixture
def rest(_ready, s3_server) -> SharedCatalog:
    """A lake with the REST catalog."""
    return SharedCatalog(s3_server)


@pytest.fixture(params=["rest", "glue"])
def shared(request, _ready, s3_server) -> SharedCatalog:
    """A lake with each catalog."""
    return SharedCatalog(s3_server, glue=request.getfixturevalue("glue") if request.param == "glue" else "")


@pytest.fixture
def asked() -> Iterator[object]:
    """Opens the write API over a lake; gives what asks it."""
    opened = []

    def over(shared):
        operations = Operations(shared.store)
        opened.append(operations)

        def ask(operation, **fields):
            return operations.answer({"operation": operation, **fields}).to_json()

        return ask

    yield over
    for each in opened:
        each.close()


def ids(table, **scan):
    return sorted(table.scan(**scan).to_arrow()["id"].to_pylist())


def write(ask, numbers, table=ORDERS):
    answers = [ask("WRITE", **table, records=[{"id": each}], idempotency_key=f"key-{each}") for each in numbers]
    assert all(each["ok"] for each in answers), answers
    return answers


def test_table_is_created_written_queried_compacted_and_expired(shared, asked, monkeypatch):
    ask = asked(shared)
    assert ask("LIST", tenant_id="acme")["tables"] == []
    assert ask("CREATE_TABLE", **ORDERS, schema=SCHEMA)["created"]
    assert ask("CREATE_TABLE", **ORDERS, schema=SCHEMA)["error"]["code"] == "TABLE_EXISTS"
    assert not ask("CREATE_TABLE", **ORDERS, schema=SCHEMA, if_not_exists=True)["created"]
    first = write(ask, range(5))
    assert (first[3].get("compaction_recommended"), first[4]["compaction_recommended"]) == (None, True)
    assert write(ask, range(5)) == first
    old = shared.files(shared.table())

    compacted = ask("COMPACT", **ORDERS)

    assert (compacted["stats"]["files_before"], compacted["stats"]["files_after"]) == (5, 1)
    table = shared.table()
    assert table.current_snapshot().summary.operation.value == "replace"
    assert ids(table) == ids(table, snapshot_id=first[4]["snapshot_id"]) == list(range(5))
    query = {**ORDERS, "sql": "SELECT count(*), min(id), max(id) FROM orders"}
    assert ask("QUERY", **query)["rows"] == [[5, 0, 4]]
    assert ask("QUERY", **query, snapshot_id=first[1]["snapshot_id"])["rows"] == [[2, 0, 1]]

    days = timedelta(days=8)
    late = SimpleNamespace(now=lambda _: datetime.now(UTC) + days)
    monkeypatch.setattr("datalake_assets.operations.dispatcher.datetime", late)
    stats = ask("COMPACT", **ORDERS, expire_snapshots=True)["stats"]

    assert stats["snapshots_expired"] == 5
    left = {each for each in shared.files(shared.table()) if each.endswith((".parquet", ".avro"))}
    (snapshot,) = shared.table().snapshots()
    manifests = snapshot.manifests(shared.table().io)
    data = [task.file.file_path for task in shared.table().scan().plan_files()]
    assert left == {snapshot.manifest_list, *(each.manifest_path for each in manifests), *data}
    assert len({each for each in old if each.endswith(".parquet")}) == 5
    assert ask("QUERY", **query, snapshot_id=first[1]["snapshot_id"])["error"]["code"] == "SNAPSHOT_NOT_FOUND"
    assert write(ask, range(5)) == first
    assert ids(shared.table()) == list(range(5))


def test_no_tenant_sees_or_reaches_what_another_has(shared, asked):
    """Names that would be the same if they were merely put together."""
    ask = asked(shared)
    tables = [("a", "b_c", "t"), ("a_b", "c", "t"), ("a", "b_1_c", "t"), ("a_1_b", "c", "t")]
    for number, (tenant, namespace, table) in enumerate(tables):
        names = {"tenant_id": tenant, "namespace": namespace, "table": table}
        assert ask("CREATE_TABLE", **names, schema=SCHEMA)["created"], names
        assert ask("WRITE", **names, records=[{"id": number}])["ok"]

    for tenant in ("a", "a_b", "a_1_b", "b", "a_1", "c1"):
        own = sorted((namespace, table) for each, namespace, table in tables if each == tenant)
        listed = ask("LIST", tenant_id=tenant)["tables"]
        assert [(each["namespace"], each["table"]) for each in listed] == own
        for number, (owner, namespace, table) in enumerate(tables):
            answer = ask("QUERY", tenant_id=tenant, namespace=namespace, table=table, sql="SELECT id FROM t")
            if (namespace, table) not in own:
                assert answer["error"]["code"] == "TABLE_NOT_FOUND"
                assert ask("LIST", tenant_id=tenant, namespace=namespace)["tables"] == []
            elif owner == tenant:
                assert answer["rows"] == [[number]]


def test_tables_of_another_lake_under_the_same_names_are_neither_shown_nor_touched(shared, asked, caplog):
    ask = asked(shared)
    ask("CREATE_TABLE", **ORDERS, schema=SCHEMA)
    write(ask, [1])
    other = asked(SharedCatalog(shared.server, glue=shared.glue, namespace=shared.namespace))

    answers = [
        other("DESCRIBE", **ORDERS),
        other("WRITE", **ORDERS, records=[{"id": 2}]),
        other("CREATE_TABLE", **{**ORDERS, "table": "more"}, schema=SCHEMA),
    ]

    assert {each["error"]["code"] for each in answers} == {"UNAVAILABLE"}
    assert shared.lake not in str(answers)
    assert "set DATALAKE_ICEBERG_NAMESPACE" in caplog.text
    assert other("LIST", tenant_id="acme")["tables"] == []
    assert other("LIST", tenant_id="acme", namespace="sales")["tables"] == []
    assert ids(shared.table()) == [1]
    assert [name for *_, name in shared.opened().list_tables(shared.namespace_of())] == ["orders"]


def test_table_that_says_it_is_anothers_is_not_shown(rest, asked):
    """As a catalog's owner could arrange by renaming."""
    ask = asked(rest)
    ask("CREATE_TABLE", **ORDERS, schema=SCHEMA)
    with rest.table().transaction() as change:
        change.set_properties({"datalake.tenant": "rival"})

    assert ask("DESCRIBE", **ORDERS)["error"]["code"] == "UNAVAILABLE"


def test_name_that_no_catalog_can_have_is_refused(rest, asked):
    ask = asked(rest)
    long = {"tenant_id": "t" * 128, "namespace": "n" * 128, "table": "t"}

    assert ask("CREATE_TABLE", **long, schema=SCHEMA)["error"]["code"] == "LIMIT_EXCEEDED"
    assert ask("DESCRIBE", **long)["error"]["code"] == "TABLE_NOT_FOUND"
    assert ask("LIST", tenant_id="t" * 128)["tables"] == []


def test_tables_of_all_tenants_are_compacted_at_night(shared):
    with Operations(shared.store) as operations:
        for table in (ORDERS, RIVAL):
            operations.answer({"operation": "CREATE_TABLE", **table, "schema": SCHEMA})
            for number in range(4 if table is ORDERS else 2):
                operations.answer({"operation": "WRITE", **table, "records": [{"id": number}]})

        assert operations.compact_all() == {"tables": 2, "compacted": 1, "orphans": 0, "failed": [], "left": 0}
    assert len(list(shared.table().scan().plan_files())) == 1
    assert ids(shared.table()) == [0, 1, 2, 3]


@pytest.fixture
def proxied(rest) -> Iterator[tuple[FaultProxy, SharedCatalog]]:
    """The REST catalog behind a proxy that fails when it is told to."""
    parts = urlsplit(rest.server.iceberg_endpoint)
    with FaultProxy(parts.hostname, parts.port) as proxy:
        yield proxy, SharedCatalog(rest.server, uri=proxy.url, namespace=rest.namespace, lake=rest.lake)


COMMIT = r"/tables/orders$"


@pytest.mark.parametrize(
    "fault",
    [
        ("drop_response", None),
        ("refuse_after", (409, "sent twice")),
        ("refuse_after", (500, "Internal")),
        ("reset", None),
        ("status", (419, "ExpiredToken")),
        ("status", (503, "SlowDown")),
    ],
)
@pytest.mark.parametrize("key", [{}, {"idempotency_key": "a"}])
def test_commit_whose_answer_is_lost_or_which_never_arrives_is_done_once(proxied, rest, asked, fault, key):
    proxy, lake = proxied
    ask = asked(lake)
    ask("CREATE_TABLE", **ORDERS, schema=SCHEMA)
    proxy.add(*fault, method="POST", path=COMMIT)

    assert ask("WRITE", **ORDERS, records=[{"id": 1}], **key)["records_written"] == 1

    assert [kind for *_, kind in proxy.log if kind] == [fault[0]]
    assert ids(rest.table()) == [1]
    assert len([each for each in rest.files(rest.table()) if each.endswith(".parquet")]) == 1


@pytest.mark.parametrize("fault", [("drop_response", None), ("refuse_after", (409, "sent twice"))])
def test_creation_whose_answer_is_lost_is_found(proxied, rest, asked, fault):
    proxy, lake = proxied
    ask = asked(lake)
    proxy.add(*fault, method="POST", path=r"/tables$")

    assert ask("CREATE_TABLE", **ORDERS, schema=SCHEMA)["created"]
    assert ask("CREATE_TABLE", **ORDERS, schema=SCHEMA)["error"]["code"] == "TABLE_EXISTS"
    assert ids(rest.table()) == []


@pytest.mark.parametrize(
    "fault",
    [
        ("drop_response", None),
        ("refuse_after", (409, "sent twice")),
        ("refuse_after", (500, "Internal")),
        ("status", (419, "ExpiredToken")),
    ],
)
def test_feed_lands_once_whatever_the_catalog_answers(proxied, rest, fault):
    proxy, lake = proxied
    feed = stream_feed(format="iceberg")
    for first, path in ((0, r"/tables$"), (3, r"/tables/s$")):
        proxy.add(*fault, method="POST", path=path)
        table = open_table(lake.store, feed)
        batches = stream_of(numbered(range(first, first + 3)))
        assert table.write(batches, partitions=table.plan().partitions, run_id="run").rows_added == 3

    assert [kind for *_, kind in proxy.log if kind] == [fault[0]] * 2
    assert ids(rest.opened().load_table((rest.namespace, "s"))) == list(range(6))
    assert list(open_table(lake.store, feed).verify(deep=True)) == []


def test_write_whose_catalog_is_gone_after_the_commit_is_not_known_and_done_once_when_repeated(
    proxied, rest, asked, monkeypatch
):
    proxy, lake = proxied
    ask = asked(lake)
    ask("CREATE_TABLE", **ORDERS, schema=SCHEMA)
    monkeypatch.setattr(record_appends, "ATTEMPTS", 2)
    proxy.add("drop_response", method="POST", path=COMMIT)
    load = TenantTables.load

    def load_and_lose_what_follows(*given):
        found = load(*given)
        proxy.add("reset", method="GET", times=-1)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(TenantTables, "load", load_and_lose_what_follows)
        answer = ask("WRITE", **ORDERS, records=[{"id": 1}], idempotency_key="a")
    proxy.clear()

    assert (answer["error"]["code"], answer["error"]["retryable"]) == ("OUTCOME_UNKNOWN", False)
    assert ids(rest.table()) == [1]
    assert ask("WRITE", **ORDERS, records=[{"id": 1}], idempotency_key="a")["records_written"] == 1
    assert ids(rest.table()) == [1]


def test_catalog_that_does_not_answer_is_unavailable_and_tells_nothing_of_itself(proxied, asked):
    proxy, lake = proxied
    ask = asked(lake)
    ask("CREATE_TABLE", **ORDERS, schema=SCHEMA)
    proxy.add("reset", times=-1)

    answers = [ask("HEALTH"), ask("DESCRIBE", **ORDERS), ask("LIST", tenant_id="acme"), ask("COMPACT", **ORDERS)]

    assert {(each["error"]["code"], each["error"]["retryable"]) for each in answers} == {("UNAVAILABLE", True)}
    assert "127.0.0.1" not in str(answers)


def test_writers_that_share_keys_and_a_compactor_at_once_write_each_record_once(rest):
    with Operations(rest.store) as operations:
        operations.answer({"operation": "CREATE_TABLE", **ORDERS, "schema": SCHEMA})

        def write_one(number):
            fields = {"records": [{"id": number // 2}], "idempotency_key": f"key-{number // 2}"}
            return operations.answer({"operation": "WRITE", **ORDERS, **fields}).to_json()

        with ThreadPoolExecutor(4) as pool:
            writes = [pool.submit(write_one, number) for number in range(16)]
            compactions = []
            while not all(each.done() for each in writes):
                compactions.append(operations.answer({"operation": "COMPACT", **ORDERS, "force": True}).to_json())
        answers = [each.result() for each in writes] + compactions
        assert [each for each in answers if not each["ok"]] == []
    assert sum(each["stats"]["files_compacted"] for each in compactions) > 0
    assert ids(rest.table()) == list(range(8))


def test_query_reads_over_its_parent_who_alone_has_the_credentials(rest, monkeypatch):
    monkeypatch.setenv(COLD, "1")  # what is forked shows the environment of the process that waited
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", rest.server.secret_key)
    with Operations(rest.store) as operations:
        operations.answer({"operation": "CREATE_TABLE", **ORDERS, "schema": SCHEMA})
        for number in range(3):
            operations.answer({"operation": "WRITE", **ORDERS, "records": [{"id": number, "note": "x" * 100}]})
        sql = "SELECT a.id FROM orders a JOIN orders b USING (id) ORDER BY id"

        assert operations.answer({"operation": "QUERY", **ORDERS, "sql": sql}).to_json()["rows"] == [[0], [1], [2]]

        pid = operations._processes._waiting[0].process.pid
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert rest.server.secret_key.encode() not in environment


def test_query_of_a_file_that_is_gone_says_so(rest, asked):
    ask = asked(rest)
    ask("CREATE_TABLE", **ORDERS, schema=SCHEMA)
    write(ask, [1, 2])
    table = rest.table()
    (path, *_) = [task.file.file_path for task in table.scan().plan_files()]
    table.io.delete(path)

    assert ask("QUERY", **ORDERS, sql="SELECT sum(id) FROM orders")["error"]["code"] == "CONFLICT"


def test_command_answers_for_a_lake_in_s3_by_its_settings(rest, monkeypatch):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in rest.environment.items():
        monkeypatch.setenv(name, value)
    requests = [
        {"operation": "CREATE_TABLE", **ORDERS, "schema": SCHEMA},
        {"operation": "WRITE", **ORDERS, "records": [{"id": 7}]},
        {"operation": "DESCRIBE", **ORDERS},
    ]

    answers = [CliRunner().invoke(app, ["ops"], input=json.dumps(each), prog_name="datalake") for each in requests]

    assert [each.exit_code for each in answers] == [0, 0, 0], answers
    assert json.loads(answers[2].output)["records"] == 1
    assert ids(rest.table()) == [7]
