"""Documents that people get wrong: refused when a feed is declared, and harmless where they were written by hand."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from datalake_assets.core.schema import schema_to_json
from datalake_assets.defs.build import build_definitions
from datalake_assets.feed import parse_feed
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.settings import Settings

GOOD = {"name": "good", "kind": "stream", "source": {"type": "ksqldb", "object": "GOOD"}, "schedule": "@hourly"}
BAD = {"name": "bad", "kind": "stream", "source": {"type": "ksqldb", "object": "BAD"}, "partition_by": "month"}
#: What the lake knows of the columns of ``bad``.
COLUMNS = pa.schema(
    [
        ("id", pa.int64()),
        ("name", pa.string()),
        ("paid", pa.decimal128(10, 2)),
        ("tags", pa.list_(pa.string())),
        ("made_at", pa.timestamp("ms", "UTC")),
        ("rowtime", pa.timestamp("ms", "UTC")),
    ]
)
LONG = "x" * 300


def of(field: str, *values: Any) -> list[tuple[str, Any]]:
    return [(field, value) for value in values]


def rules(*each: dict[str, Any]) -> list[tuple[str, Any]]:
    return [("checks", {"rules": [rule]}) for rule in each]


#: Refused by our own validation, or by Dagster: by hand, such a feed is no part of the location.
NO_FEED = [
    *of("name", "", "Bad", "bäd", "../bad", "b d", "1bad", "b" * 129, "bad\u00a0x", None, 7),
    *of("kind", "", "streams", "folder", None, 1),
    *of("source", None, "", {}, {"type": "ksqldb"}, {"type": "oracle", "object": "X"}, {"type": "folder", "uri": "/x"}),
    *of("source", {"type": "ksqldb", "object": "X", "idle_s": 1e999}, {"type": "ksqldb", "object": "", "x": 1}),
    *of("partition_by", "year", "", None, 1),
    *of("start", "0001-01-01", "1969-12-31", "9999-12-31", "soon", "", None, -1, 1e30, "2025-02-30"),
    *of("lateness", "P999999999D", "-P1D", "P36501D", 1e999, -1, "tomorrow", float("nan"), None),
    *of("format", {"type": "csv"}, {"row_group_bytes": 0}, {"target_file_size_bytes": 10**30}, {"compression": "lzo"}),
    *of("schema_policy", "", "thaw", None),
    *of("retention", {"versions": 0}, {"versions": 10**9}, {"max_age": "P999999999D"}, {"max_age": "-PT1S"}),
    *of("freshness", {"max_commit_age": "P999999999D"}, {"fail_event_age": -1}, {"max_event_age": 1e999}, {"x": 1}),
    *of("small_file_bytes", -1, 10**30, 1.5, float("inf"), "many", None),
    *of("compaction", {"min_files": 1}, {"min_files": 10**30}, {"max_files": 0}, {"max_bytes": 1}, {"fan_in": 1}),
    *of("compaction", {"min_file_age": "P999999999D"}, {"min_partition_age": "-P1D"}, {"split_above": float("nan")}),
    *of("compaction", {"split_above": 1e999}, {"split_above": -1}, {"recommend_every": -1}, {"sort_by": "id"}),
    *of("runs", {"max_bytes": 1}, {"partitions": 0}, {"cores": 0}, {"cores": 1e999}, {"memory_mb": 1}, {"x": 1}),
    *of("runs", {"tags": {"dagster/run_key": "k"}}, {"tags": {"datalake/feed": "x"}}, {"tags": {"": "x"}}),
    *of(
        "runs", {"tags": {".dagster/x": "x"}}, {"tags": {"a b": "x"}}, {"tags": {"a": 1}}, {"tags": {"a": "x" * 9_999}}
    ),
    *of("schedule", "daily", "61 * * * *", "* * * * * *", "@foo", "@reboot", "0 0 31 2 *", "*/0 * * * *", "a b c d e"),
    *of("schedule", "0 0 * * * 2025", "@", "0 25 * * *", 5),
    *of("owners", ["x"], ["team:"], ["@"], ["a@b"], [""], ["TEAM:x"], "team:x", [None], ["a@b.example", "nobody"]),
    *of("tags", {"a b": "c"}, {"": "x"}, {"k": "v v"}, {"k": LONG}, {LONG: "x"}, {"é": "x"}, {"a/b/c": "x"}, {"k": 1}),
    *of("group", "a b", "é", "a-b", "a//b", "/", "group!", 1),
    *of("description", 1, None),
    *of("columns", {"id": {"unit": 1}}, {"id": "text"}, {"id": {"colour": "red"}}),
    *of("enabled", "maybe", None),
    *of("revision", -1, 10**30, "one"),
    *of("colour", "red"),
    *of("checks", {"small_files": {"warn": float("nan")}}, {"row_drop_percent": {"error": -1}}),
    *of("checks", {"blocking": ["none"]}),
    *of("checks", {"quarantined_percent": {"warn": 1e999}}, {"rules": [{"type": "magic"}]}, {"rules": [{}]}),
    *rules({"type": "not_null", "column": "größe"}, {"type": "sql", "name": "größe", "query": "SELECT * FROM data"}),
    *rules({"type": "sql", "query": "SELECT * FROM data"}, {"type": "range", "column": "id"}),
    *rules({"type": "range", "column": "id", "min": float("nan")}, {"type": "unique", "columns": []}),
    *rules(
        {"type": "not_null", "column": "id", "name": "row_count"}, {"type": "not_null", "column": "id", "name": "-"}
    ),
    *rules({"type": "not_null", "column": "id", "limits": {"error": float("nan")}}),
]
KSQLDB = {"type": "ksqldb", "object": "X"}
#: Refused by DuckDB, Arrow or the source: by hand, such a feed loads, and its checks, compactions or exports say so.
NO_FIT = [
    *rules({"type": "not_null", "column": "idd"}, {"type": "unique", "columns": ["id", "nme"]}),
    *rules({"type": "regex", "column": "name", "pattern": "["}),
    *rules({"type": "regex", "column": "name", "pattern": "(?<=a)b"}),
    *rules({"type": "regex", "column": "id", "pattern": "a"}, {"type": "regex", "column": "name", "pattern": "a**"}),
    *rules({"type": "range", "column": "id", "min": "few"}, {"type": "range", "column": "made_at", "max": "soon"}),
    *rules({"type": "range", "column": "name", "min": 5}, {"type": "range", "column": "id", "max": 10**60}),
    *rules({"type": "range", "column": "tags", "min": 1}, {"type": "range", "column": "made_at", "min": 5}),
    *rules(*({"type": "sql", "name": "own", "query": query} for query in (
        "SELEC 1",
        "",
        "SELECT * FROM data; SELECT 1",
        "DROP TABLE data",
        "SELECT * FROM dta",
        "SELECT * FROM data WHERE idd > 1",
        "SELECT * FROM data WHERE made_at > 'soon'",
        "SELECT no_such_function(id) FROM data",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM '/etc/passwd.parquet'",
        "COPY data TO '/tmp/x'",
        "ATTACH 'x.db'",
        "SELECT * FROM data WHERE",
        "SELECT * FROM data) -- (",
    ))),
    *of("compaction", {"sort_by": ["idd"]}, {"sort_by": ["tags"]}, {"sort_by": [""]}, {"sort_by": ["id", "nme"]}),
    *of("source", *(KSQLDB | {"rename": each} for each in ({"A": "b", "C": "b"}, {"A": ""}, {"A": "B"}, {"A": "day"}))),
    *of("source", KSQLDB | {"offset_columns": ["P", "P"]}),
]  # fmt: skip
FINE = [
    *of("schedule", "*/5 * * * *", "@hourly", "@daily", "0 0 29 2 *", None, "0 6 * * MON-FRI"),
    *of("owners", ["team:a", "a@b.example"], []),
    *of("tags", {"a/b": "c"}, {"k": ""}),
    *of("group", "sales", "sales/emea", ""),
    *of("lateness", "PT0S", "P30D", 90),
    *of("start", "1970-01-01", "2030-01-01"),
    *of("columns", {"gone": {"description": "Kept."}}),
    *of("compaction", {"sort_by": ["id", "name"]}),
    *rules(
        {"type": "range", "column": "made_at", "min": "2025-01-01"}, {"type": "range", "column": "paid", "min": 0.5}
    ),
    *rules({"type": "sql", "name": "own", "query": "SELECT * FROM data WHERE id < 0 -- none"}),
    *rules({"type": "sql", "name": "own", "query": "SELECT * FROM data, range(1000000000000) WHERE id < 0"}),
    *rules({"type": "unique", "columns": ["id"]}, {"type": "regex", "column": "name", "pattern": "[a-z]+"}),
]


def document(field: str, value: Any) -> dict[str, Any]:
    return {**BAD, field: value}


def name_of(case: Any) -> str:
    return repr(case)[:40]


@pytest.fixture
def _columns_are_known(lake_store):
    state = FeedFolder(lake_store, parse_feed(json.dumps(BAD))).state
    state.change(lambda now: now.__class__(schema=schema_to_json(COLUMNS), position_kind="offsets"))


@pytest.mark.usefixtures("_columns_are_known")
@pytest.mark.parametrize(("field", "value"), [*NO_FEED, *NO_FIT], ids=name_of)
def test_add_refuses_it_in_one_line(run, lake, tmp_path, field, value):
    (tmp_path / "feed.json").write_text(json.dumps(document(field, value)))

    result = run("feeds", "add", "--file", "feed.json")

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert "unexpected" not in result.stderr
    assert not (lake / "feeds").exists()


@pytest.mark.usefixtures("_columns_are_known")
@pytest.mark.parametrize(("field", "value"), FINE, ids=name_of)
def test_add_takes_it_and_the_location_has_it(run, lake, tmp_path, field, value):
    (tmp_path / "feed.json").write_text(json.dumps(document(field, value)))
    assert run("feeds", "add", "--file", "feed.json").stderr == ""
    assert "streams/bad" in assets(lake)


#: A location of so many of them looks at each by itself; loading one for each takes three times the CPU.
TOGETHER = 16


def in_parts(cases: list[tuple[str, Any]]) -> list[Any]:
    return [
        pytest.param(cases[first : first + TOGETHER], id=f"{first} to {first + TOGETHER}")
        for first in range(0, len(cases), TOGETHER)
    ]


def write_by_hand(registry: FeedRegistry, cases: list[tuple[str, Any]]) -> dict[str, tuple[str, Any]]:
    """Writes a good feed and the cases, each into a file of its own; the cases by the names of the files."""
    registry.add(parse_feed(json.dumps(GOOD)))
    written = {f"bad_{number}": case for number, case in enumerate(cases)}
    for name, (field, value) in written.items():
        Path(f"lake/feeds/active/{name}.json").write_text(json.dumps(document("name", name) | {field: value}))
    return written


@pytest.mark.parametrize("cases", in_parts(NO_FEED))
def test_written_by_hand_they_take_no_other_feed_down(run, registry, caplog, cases):
    written = write_by_hand(registry, cases)

    with caplog.at_level(logging.WARNING):
        found = assets(Path("lake"))

    assert "streams/good" in found
    left_out = {key: written[key.split("/")[1]] for key, spec in found.items() if "datalake/left_out" in spec.tags}
    folders = {name: "streams" if field != "kind" else "feeds" for name, (field, _) in written.items()}
    folders |= {name: "folders" for name, case in written.items() if case == ("kind", "folder")}
    assert left_out == {f"{folders[name]}/{name}": case for name, case in written.items()}
    checked = json.loads(run("feeds", "check", "--json").stdout)["feeds"]
    problems = {each["feed"].removeprefix("feeds/active/").removesuffix(".json"): each["problem"] for each in checked}
    assert "good" in {feed["name"] for feed in json.loads(run("feeds", "list", "--json").stdout)["feeds"]}
    for name, case in written.items():
        assert any(f"{name}.json" in line for line in caplog.messages), case
        assert problems[name], case


@pytest.mark.parametrize("cases", in_parts(NO_FIT))
def test_written_by_hand_they_load_if_only_their_data_can_tell(registry, cases):
    written = write_by_hand(registry, cases)
    found = assets(Path("lake"))
    assert {"streams/good", *(f"streams/{name}" for name in written)} <= set(found)
    assert not any("datalake/left_out" in spec.tags for spec in found.values())


@pytest.mark.parametrize(
    ("file", "text", "key"),
    [
        ("streams/good.json", "{", "feeds/streams_good"),
        ("Bäd näme!.json", '{"kind": "table"}', "tables/B_d_n_me_"),
        (".json", "", "feeds/_"),
        ("x" * 200 + ".json", "[" * 100_000, "feeds/" + "x" * 128),
        ("dagster.json", '{"kind": ["stream"]}', "feeds/dagster"),
        ("a__b.json", '{"name": "![x](http://127.0.0.1:9/x.png)", "kind": "folder", "\\u0000": 1}', "folders/a__b"),
        ("lake_report.json", "\ud800", "feeds/lake_report"),
    ],
)
def test_file_of_any_name_and_content_is_shown_as_left_out(registry, file, text, key):
    registry.add(parse_feed(json.dumps(GOOD)))
    path = Path("lake/feeds/active", file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, errors="surrogatepass")

    found = assets(Path("lake"))

    assert {"streams/good", "lake_report", key} <= set(found)
    assert file in found[key].metadata["datalake/file"].text


@pytest.mark.parametrize("name", [b"\xff.json", b"two\nlines.json", b"a\\b.json", b"loop.json"])
def test_file_that_no_store_can_have_takes_no_other_feed_down(run, lake, registry, name):
    registry.add(parse_feed(json.dumps(GOOD)))
    path = os.fsencode(lake / "feeds/active") + b"/" + name
    if name == b"loop.json":
        os.symlink(name, path)  # noqa: PTH211  a path that is no text
    else:
        Path(os.fsdecode(path)).write_text("{}")

    result = run("feeds", "list", "--json")

    document = json.loads(result.stdout)
    assert (result.exit_code, [feed["name"] for feed in document["feeds"]]) == (0, ["good"])
    assert len(document["problems"]) == (name != b"loop.json")
    assert "streams/good" in assets(lake)


def test_names_that_become_one_are_shown_both(registry):
    registry.add(parse_feed(json.dumps(GOOD)))
    for name in ("a!", "a?", "a_"):
        Path(f"lake/feeds/active/{name}.json").write_text("{")
    assert {"feeds/a_", "feeds/a__", "feeds/a___"} <= set(assets(Path("lake")))


def test_members_that_are_there_twice_are_refused(run, tmp_path):
    text = json.dumps(BAD).removesuffix("}") + ', "tags": {"a": "1", "a": "2"}}'
    (tmp_path / "feed.json").write_text(text)
    (tmp_path / "lake").mkdir()
    result = run("feeds", "add", "--file", "feed.json")
    assert (result.exit_code, result.stderr) == (1, "Error: feed 'feed.json' is invalid: 'a' is there twice\n")


@pytest.mark.parametrize(("by", "start"), [("day", "1970-01-01"), ("hour", "2024-01-01")])
def test_partitions_too_many_for_dagster_are_refused(run, lake, by, start):
    options = ("--name", "bad", "--kind", "stream", "--object", "BAD", "--partition-by", by, "--start", start)
    result = run("feeds", "add", *options)
    assert result.exit_code == 1
    assert "above 20,000; take a later start, or longer partitions" in result.stderr
    assert not (lake / "feeds").exists()


def test_hourly_partitions_of_some_years_stay_loaded_and_can_be_changed(run, lake, registry, tmp_path):
    """A feed does not become invalid by itself, however long it is kept."""
    old = BAD | {"partition_by": "hour", "start": "2020-01-01"}
    registry.add(parse_feed(json.dumps(old)))
    (tmp_path / "feed.json").write_text(json.dumps(old | {"revision": 1, "group": "sales"}))

    assert run("feeds", "update", "--file", "feed.json").exit_code == 0

    assert "streams/bad" in assets(lake)
    assert "take a later start" in run("feeds", "check").stderr


def test_export_of_a_feed_that_was_left_out_says_why_and_others_go_on(run_process, lake, registry):
    registry.add(parse_feed(json.dumps(GOOD)))
    (lake / "feeds" / "active" / "bad.json").write_text(json.dumps(document("owners", ["nobody"])))

    result = run_process("export", "--all", "--json", DATALAKE_KSQLDB_URL="http://127.0.0.1:9")

    found = json.loads(result.stdout)["feeds"]
    errors = {feed["feed"]: feed["error"] for feed in found}
    assert result.returncode == 1
    assert {feed["feed"]: feed["kind"] for feed in found} == {"bad": "stream", "good": "stream"}
    assert errors["bad"].startswith("feed 'bad' is invalid: Dagster refuses it: Invalid owner 'nobody'")
    assert "127.0.0.1:9" in errors["good"]


def test_check_names_what_dagster_refuses(run, lake, registry, monkeypatch):
    monkeypatch.setenv("DATALAKE_KSQLDB_URL", "http://127.0.0.1:9")
    registry.add(parse_feed(json.dumps(BAD)).model_copy(update={"group": "a b"}))
    result = run("feeds", "check", "--json")
    (found,) = json.loads(result.stdout)["feeds"]
    assert result.exit_code == 1
    assert found["problem"].startswith('Dagster refuses it: "a b" is not a valid asset group name')


def test_age_of_rows_of_a_table_is_refused(run, lake, tmp_path):
    table = {**BAD, "kind": "table", "partition_by": "day", "freshness": {"max_event_age": "P1D"}}
    (tmp_path / "feed.json").write_text(json.dumps(table))
    result = run("feeds", "add", "--file", "feed.json")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: feed 'bad' is invalid: freshness: rows of a table have no time; limit the")


LATE_WARNINGS = {
    "freshness: max_commit_age, fail_commit_age": {"freshness": {"max_commit_age": "P2D", "fail_commit_age": "P1D"}},
    "freshness: max_event_age, fail_event_age": {"freshness": {"max_event_age": "PT25H", "fail_event_age": "P1D"}},
    "checks.small_files: warn, error": {"checks": {"small_files": {"warn": 11, "error": 10}}},
    "checks.quarantined_percent: warn, error": {"checks": {"quarantined_percent": {"warn": 0.1, "error": 0}}},
    "checks.rules: limits of 'not_null_X': warn, error": {
        "checks": {"rules": [{"type": "not_null", "column": "X", "limits": {"warn": 50, "error": 49.5}}]}
    },
}


@pytest.mark.parametrize("where", LATE_WARNINGS)
def test_a_check_that_fails_before_it_warns_is_refused(run, lake, registry, tmp_path, where):
    late = {**BAD, **LATE_WARNINGS[where]}
    (tmp_path / "feed.json").write_text(json.dumps(late))
    added = run("feeds", "add", "--file", "feed.json")
    told = f"{where}: it fails before it warns; let it warn earlier, or leave one of the two out"
    assert (added.exit_code, added.stderr) == (1, f"Error: feed 'bad' is invalid: {told}\n")

    registry.add(parse_feed(json.dumps(late)))  # as the versions before did: it stays, and is named
    (found,) = json.loads(run("feeds", "check", "--json").stdout)["feeds"]
    assert found["problem"] == told


def test_a_rule_that_no_value_meets_is_refused(run, lake, tmp_path):
    rules = [{"type": "range", "column": "X", "min": 5, "max": 4.5}]
    (tmp_path / "feed.json").write_text(json.dumps({**BAD, "checks": {"rules": rules}}))
    result = run("feeds", "add", "--file", "feed.json")
    assert result.exit_code == 1
    assert "checks.rules: no value lies between min and max of 'range_X'" in result.stderr


def test_update_refuses_what_add_refuses(run, lake, registry, tmp_path):
    registry.add(parse_feed(json.dumps(BAD)))
    (tmp_path / "feed.json").write_text(json.dumps(document("schedule", "daily") | {"revision": 1}))
    result = run("feeds", "update", "--file", "feed.json")
    assert result.exit_code == 1
    assert "Found invalid cron schedule 'daily'" in result.stderr
    assert registry.get("bad").schedule is None


def assets(lake: Path) -> dict[str, dg.AssetSpec]:
    definitions = build_definitions(Settings(lake=str(lake)))
    definitions.get_repository_def()
    return {spec.key.to_user_string(): spec for spec in definitions.resolve_all_asset_specs()}
