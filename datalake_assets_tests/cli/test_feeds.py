"""`datalake feeds`: exact messages, documents and exit codes."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.cli.feed_options import feed_name
from datalake_assets.core.batches import RejectedRow
from datalake_assets.feed import parse_feed
from datalake_assets.lake.hive import HiveTable
from datalake_assets_tests.lake.feeds import numbered, stream_of

ADD = ("feeds", "add", "--name", "orders", "--kind", "stream", "--object", "ORDERS")


def test_add_says_what_it_added(run, registry):
    result = run(*ADD)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "added streams/orders, from ORDERS\n", "")
    assert registry.get("orders").source.object == "ORDERS"


def test_add_takes_every_option(run, registry):
    options = [
        *("--mode", "pull", "--offset-columns", "P, O", "--rename", "YEAR=made", "--partition-by", "month"),
        *("--time-column", "made_at", "--start", "2025-02-03", "--format", "parquet", "--compression", "zstd"),
        *("--schema-policy", "discard_row", "--schedule", "0 * * * *", "--owner", "team:a", "--owner", "a@b.example"),
        *("--tag", "tier=gold", "--group", "sales", "--description", "All orders."),
    ]
    assert run(*ADD, *options).exit_code == 0
    feed = registry.get("orders")
    assert (feed.source.mode, feed.source.offset_columns) == ("pull", ("P", "O"))
    assert (feed.source.rename, feed.partition_by, feed.time_column) == ({"YEAR": "made"}, "month", "made_at")
    assert (str(feed.start), feed.format.compression, feed.schema_policy) == ("2025-02-03", "zstd", "discard_row")
    assert (feed.schedule, feed.owners, feed.tags) == ("0 * * * *", ("team:a", "a@b.example"), {"tier": "gold"})
    assert (feed.group, feed.description) == ("sales", "All orders.")


def test_add_takes_how_changes_are_merged(run, registry):
    options = ["--write", "merge", "--key", "id", "--key", "region", "--order-by", "version"]
    assert run(*ADD, *options, "--delete-when", "op=d", "--delete-when", "op=t").exit_code == 0
    feed = registry.get("orders")
    assert (feed.write, feed.key, feed.merge.order_by) == ("merge", ("id", "region"), "version")
    assert (feed.merge.delete_column, feed.merge.delete_values) == ("op", ("d", "t"))
    assert [(rule.check_name, rule.columns, rule.across) for rule in feed.checks.rules] == [
        ("unique_key", ("id", "region"), "feed")
    ]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--write", "merge"), "document: key: write = 'merge' needs the columns whose values together name a row"),
        (("--key", "id"), "document: key: it means nothing without write = 'merge'"),
        (("--order-by", "at"), "document: merge: it means nothing without write = 'merge'"),
        (
            ("--write", "merge", "--key", "id", "--order-by", "id"),
            "document: key: its columns, order_by and delete_column are different columns",
        ),
        (
            ("--write", "merge", "--key", "id", "--schema-policy", "discard_value"),
            "document: schema_policy: a value that is left out may be what orders or deletes: merge with 'discard_row'",
        ),
        (
            ("--write", "merge", "--key", "id", "--mode", "pull"),
            "document: write: changes can be merged only where their source numbers them: set its mode to 'offsets'",
        ),
        (
            ("--write", "merge", "--key", "id", "--envelope", "debezium", "--delete-when", "op=d"),
            "merge: delete_column: a Debezium envelope marks deletions itself, by its op",
        ),
    ],
)
def test_add_refuses_what_cannot_be_merged(run, lake, options, reason):
    result = run(*ADD, *options)
    assert (result.exit_code, result.stderr) == (1, f"Error: feed 'orders' is invalid: {reason}\n")
    assert not (lake / "feeds").exists()


def test_update_refuses_another_key(run, registry, tmp_path):
    assert run(*ADD, "--write", "merge", "--key", "id").exit_code == 0
    document = registry.get("orders").model_dump_json().replace('"key":["id"]', '"key":["name"]')
    (tmp_path / "orders.json").write_text(document)
    result = run("feeds", "update", "--file", str(tmp_path / "orders.json"))
    line = "write, key, order_by and envelope are for life; archive the feed and add another"
    assert (result.exit_code, result.stderr) == (1, f"Error: feed 'orders' is invalid: {line}\n")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--name", "Orders"), "feed 'Orders' is invalid: name: names match [a-z][a-z0-9_]{0,127}"),
        (
            ("--schedule", "daily"),
            (
                "feed 'orders' is invalid: Dagster refuses it: Found invalid cron schedule 'daily' for schedule"
                " 'export_stream_orders''. Dagster recognizes standard cron expressions consisting of 5 fields."
            ),
        ),
        (
            ("--start", "soon"),
            "feed 'orders' is invalid: start: Input should be a valid date or datetime, input is too short",
        ),
    ],
)
def test_add_of_an_invalid_feed_is_one_line(run, lake, options, line):
    result = run(*ADD, *options)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"Error: {line}\n")
    assert not (lake / "feeds").exists()


def test_add_of_a_known_name_is_one_line(run, lake):
    run(*ADD)
    result = run(*ADD)
    line = "Error: feed 'orders' exists already; choose another name, or archive or restore that one\n"
    assert (result.exit_code, result.stderr) == (1, line)


LISTED = "--from-ksqldb or --from-sqs or --from-sql or --from-kafka or --from-kinesis"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), f"missing --name, --kind, --object (or give --file or {LISTED})"),
        (("--name", "x"), f"missing --kind, --object (or give --file or {LISTED})"),
        (("--from-ksqldb", "--name", "x"), "--from-ksqldb cannot be combined with --name"),
        (("--file", "-", "--object", "x"), "--file cannot be combined with --object"),
        (("--file", "-", "--from-ksqldb"), "--file cannot be combined with --from-ksqldb"),
        ((*ADD[2:], "--tag", "gold"), "--tag 'gold' is not written as KEY=VALUE"),
    ],
)
def test_add_refuses_what_does_not_go_together(run, lake, arguments, message):
    result = run("feeds", "add", *arguments)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == f"Error: {message}"


def test_add_from_a_file(run, registry, tmp_path):
    document = {"name": "orders", "kind": "table", "source": {"type": "ksqldb", "object": "O"}, "group": "sales"}
    (tmp_path / "feed.json").write_text(json.dumps(document))
    assert run("feeds", "add", "--file", "feed.json").stdout == "added tables/orders, from O\n"
    assert registry.get("orders").group == "sales"


def test_add_from_standard_input_prints_json(run, lake):
    document = {"name": "orders", "kind": "table", "source": {"object": "O"}}
    result = run("feeds", "add", "--file", "-", "--json", input=json.dumps(document))
    answer = json.loads(result.stdout)
    assert answer["skipped"] == []
    assert answer["added"][0]["revision"] == 1


def test_add_from_a_bad_file_is_one_line(run, lake, tmp_path):
    (tmp_path / "feed.json").write_text("{")
    result = run("feeds", "add", "--file", "feed.json")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: feed 'feed.json' is invalid: document: Invalid JSON")
    assert len(result.stderr.splitlines()) == 1


def test_list_shows_a_table(run, lake):
    run(*ADD)
    run("feeds", "add", "--name", "accounts", "--kind", "table", "--object", "ACCOUNTS", "--schedule", "@daily")
    assert run("feeds", "list").stdout.splitlines() == [
        "feed      kind    object    read by    partitions  schedule",
        "────────  ──────  ────────  ─────────  ──────────  ────────",
        "accounts  table   ACCOUNTS  snapshots  versions    @daily",
        "orders    stream  ORDERS    offsets    day",
    ]


def test_list_skips_a_bad_file_and_says_so(run, lake):
    run(*ADD)
    (lake / "feeds/active/bad.json").write_text("{}")
    result = run("feeds", "list")
    assert result.exit_code == 0
    assert "orders" in result.stdout
    assert result.stderr.startswith("skipped feeds/active/bad.json: name: Field required; kind: Field required")
    assert len(result.stderr.splitlines()) == 1
    answer = run("feeds", "list", "--json")
    assert [problem["file"] for problem in json.loads(answer.stdout)["problems"]] == ["feeds/active/bad.json"]
    assert answer.stderr == ""


def test_show_prints_the_document(run, registry):
    run(*ADD)
    assert json.loads(run("feeds", "show", "orders").stdout) == registry.get("orders").model_dump(mode="json")


def test_archive_and_restore(run, lake):
    run(*ADD)
    assert run("feeds", "archive", "orders").stdout == (
        "archived streams/orders; its data stays, and 'datalake feeds restore orders' brings it back\n"
    )
    assert run("feeds", "list").stdout == (
        f"no active feeds in {lake}; add some with 'datalake feeds add', or see 'datalake demo'\n"
    )
    assert "orders" in run("feeds", "list", "--archived").stdout
    again = run("feeds", "archive", "orders")
    line = "Error: feed 'orders' is archived; restore it with 'datalake feeds restore orders'\n"
    assert (again.exit_code, again.stderr) == (1, line)
    assert run("feeds", "restore", "orders").stdout == "restored streams/orders\n"
    assert (lake / "feeds/active/orders.json").exists()


def test_check_without_a_server_names_the_setting(run, lake):
    run(*ADD)
    (lake / "feeds/active/bad.json").write_text("{")
    result = run("feeds", "check")
    assert (result.exit_code, result.stdout) == (1, "")
    bad, orders = result.stderr.splitlines()
    assert bad.startswith("feeds/active/bad.json: document: Invalid JSON")
    assert orders.startswith("orders: no ksqlDB server to read from: set DATALAKE_KSQLDB_URL")


def test_check_of_a_server_that_is_down_is_one_line(run, lake, monkeypatch):
    monkeypatch.setenv("DATALAKE_KSQLDB_URL", "http://127.0.0.1:9")
    run(*ADD)
    result = run("feeds", "check", "orders")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("orders: ")
    assert "http://127.0.0.1:9" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("object_name", "name"),
    [
        ("ORDERS", "orders"),
        ("Kunden-Daten", "kunden_daten"),
        ("2024_SALES", "feed_2024_sales"),
        ("_INTERNAL", "feed_internal"),
        ("Ärger", "feed_rger"),
        ("X" * 200, "x" * 128),
    ],
)
def test_feed_name_of_an_object(object_name, name):
    assert feed_name(object_name) == name


def changed(run, tmp_path, **changes: object) -> str:
    """The shown document with changes, in a file."""
    document = {**json.loads(run("feeds", "show", "orders").stdout), **changes}
    path = tmp_path / "orders.json"
    path.write_text(json.dumps(document))
    return str(path)


def test_update_changes_what_the_document_says(run, registry, tmp_path):
    run(*ADD)
    rules = [{"type": "not_null", "column": "id"}]

    result = run("feeds", "update", "--file", changed(run, tmp_path, schedule="@daily", checks={"rules": rules}))

    assert (result.exit_code, result.stdout) == (0, "updated streams/orders, revision 2\n")
    feed = registry.get("orders")
    assert (feed.schedule, [rule.check_name for rule in feed.checks.rules]) == ("@daily", ["not_null_id"])


def test_update_of_an_outdated_document_is_refused(run, registry, tmp_path):
    run(*ADD)
    old = changed(run, tmp_path, schedule="@daily")
    run("feeds", "update", "--file", old)

    result = run("feeds", "update", "--file", old)

    assert result.exit_code == 1
    assert result.stderr == (
        "Error: feed 'orders' is at revision 2, the document is of revision 1; show it again with"
        " 'datalake feeds show orders', and repeat the change\n"
    )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"name": "others"}, "feed 'others' does not exist; see 'datalake feeds list'"),
        (
            {"partition_by": "month"},
            "feed 'orders' is invalid: kind and partition_by are for life",
        ),
    ],
)
def test_update_that_cannot_be_is_one_line(run, lake, tmp_path, changes, line):
    run(*ADD)

    result = run("feeds", "update", "--file", changed(run, tmp_path, **changes))

    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {line}")


def test_remove_frees_the_name_and_leaves_nothing(run, lake, lake_store, registry):
    """What a new feed of that name lands is not held against positions of the old one."""
    old = parse_feed(json.dumps({"name": "s", "kind": "stream", "source": {"type": "ksqldb", "object": "S"}}))
    registry.add(old)
    write = stream_of(numbered(range(5), rejected=[RejectedRow(b"{", "not JSON", "0:9")]))
    HiveTable(lake_store, old).write(write, partitions=["2025-01-01"], run_id="run")

    active = run("feeds", "remove", "s", "--yes")
    assert (active.exit_code, active.stderr) == (
        1,
        "Error: feed 's' is active; archive it first: 'datalake feeds archive s'\n",
    )
    run("feeds", "archive", "s")
    asked = run("feeds", "remove", "s", input="n\n")
    assert (asked.exit_code, asked.stdout) == (1, "")
    assert asked.stderr.endswith("Error: streams/s stays as it is: nobody said yes\n")
    unattended = run("feeds", "remove", "s", input="")
    assert (unattended.exit_code, unattended.stdout) == (2, "")
    assert unattended.stderr.endswith("Error: nobody is there to answer; give --yes\n")
    assert registry.archived("s").name == "s"

    removed = run("feeds", "remove", "s", "--yes")
    assert (removed.exit_code, removed.stderr) == (0, "")
    assert removed.stdout.startswith("removed streams/s: ")
    assert [path for path in lake.rglob("*") if path.is_file() and ".staging" not in path.parts] == []
    assert run("feeds", "remove", "s", "--yes").exit_code == 1

    registry.add(old)
    write = stream_of(numbered(range(5)))
    assert HiveTable(lake_store, old).write(write, partitions=["2025-01-01"], run_id="run").rows_added == 5


def test_remove_of_an_adopted_folder_leaves_its_files(run, lake, tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    pq.write_table(pa.table({"x": [1]}), folder / "a.parquet")
    assert run("adopt", str(folder), "--name", "theirs").exit_code == 0
    run("feeds", "archive", "theirs")

    assert run("feeds", "remove", "theirs", "--yes").exit_code == 0

    assert pq.read_table(folder / "a.parquet").num_rows == 1
    assert not (lake / "control" / "folders").exists() or not list((lake / "control" / "folders").rglob("*.json"))
    assert run("adopt", str(folder), "--name", "theirs").exit_code == 0


def test_removal_that_died_is_finished_by_another(run, lake, lake_store, registry):
    old = parse_feed(json.dumps({"name": "s", "kind": "stream", "source": {"type": "ksqldb", "object": "S"}}))
    registry.add(old)
    HiveTable(lake_store, old).write(stream_of(numbered(range(5))), partitions=["2025-01-01"], run_id="run")
    registry.archive("s")
    lake_store.delete([info.key for info in lake_store.list("streams/s")])  # as far as it came

    assert run("feeds", "remove", "s", "--yes").exit_code == 0
    assert list(lake_store.list("control/streams")) == []
