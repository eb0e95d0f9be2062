"""`datalake compact`: what it prints and reports, and its exit codes, on a table in memory."""

from __future__ import annotations

import json

import dagster as dg
import pyarrow as pa
import pytest

from datalake_assets.cli import compact as compacting
from datalake_assets.cli import compact as planning
from datalake_assets.core.compaction.plan import CompactionRequest, LeftAlone
from datalake_assets.errors import CorruptLake, LakeUnavailable
from datalake_assets.feed import MIB
from datalake_assets.lake import event_queue
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets_tests.cli.told import dagster_told
from datalake_assets_tests.defs.fakes import MemoryTable, days_ago, rows, stream, table

DAYS = ("2026-01-01", "2026-01-02", "2026-01-03")
TOO_LARGE = "is {} MiB: above 128 MiB and never split"
FIGURES = [
    "files_before",
    "files_after",
    "files_compacted",
    "files_removed",
    "bytes_before",
    "bytes_after",
    "bytes_saved",
    "rows",
    "kernel",
    "row_groups_merged",
    "row_groups_encoded",
    "compaction_time_ms",
    "small_files_remaining",
    "skipped",
    "decoded",
]


@pytest.fixture
def clicks(registry: FeedRegistry, monkeypatch: pytest.MonkeyPatch) -> MemoryTable:
    """The stream ``clicks``: a row on each of three days, in 40 and in 1,000 small files on the last two."""
    memory = MemoryTable(registry.add(stream()))
    memory.data = {key: pa.Table.from_batches([rows(days_ago(3))]) for key in DAYS}
    memory.small = {DAYS[1]: 40, DAYS[2]: 1000}
    for module in (compacting, planning):
        monkeypatch.setattr(module, "open_table", lambda *_: memory)
    return memory


def _asked(memory: MemoryTable) -> list[str]:
    return [key for key, _, _ in memory.compacted]


def test_compact_tells_what_became_of_each_partition_the_worst_first(run, clicks):
    result = run("compact", "clicks")

    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "streams/clicks 2026-01-03: files 1,000 -> 1, 150 B -> 100 B, 1 rows, reencode, 0.2 s",
        "streams/clicks 2026-01-02: files 40 -> 1, 150 B -> 100 B, 1 rows, reencode, 0.2 s",
        "streams/clicks: 2 of 3 partitions compacted, files 1,040 -> 2, 300 B -> 200 B, 2 rows, reencode, 0.5 s",
    ]
    assert _asked(clicks) == [DAYS[2], DAYS[1], DAYS[0]]


def test_nothing_to_do_is_one_line(run, clicks):
    clicks.small.clear()
    clicks.left[DAYS[0]] = (LeftAlone("a", TOO_LARGE.format(130)), LeftAlone("b", TOO_LARGE.format(140)))

    result = run("compact", "clicks")

    line = "streams/clicks: nothing to compact in 3 partitions; 2 files: above 128 MiB and never split\n"
    assert (result.exit_code, result.stdout, result.stderr) == (0, line, "")
    clicks.data.clear()
    assert run("compact", "clicks").stdout == "streams/clicks: nothing to compact in 0 partitions\n"


def test_files_left_alone_are_told_by_reason_or_each(run, clicks):
    clicks.left[DAYS[1]] = tuple(LeftAlone(f"{size}.parquet", TOO_LARGE.format(size)) for size in (130, 140))
    clicks.left[DAYS[2]] = (LeftAlone("young.parquet", "is 5 s old: younger than 1 h"),)

    assert run("compact", "clicks").stdout.splitlines()[3:] == [
        "left alone: 2 files, like 2026-01-02/130.parquet: above 128 MiB and never split",
        "left alone: 2026-01-03/young.parquet: is 5 s old: younger than 1 h",
    ]
    each = [
        "left alone: 2026-01-01/x.parquet: is 5 s old: younger than 1 h",
        "left alone: 2026-01-02/130.parquet: is 130 MiB: above 128 MiB and never split",
        "left alone: 2026-01-02/140.parquet: is 140 MiB: above 128 MiB and never split",
    ]
    clicks.left = {DAYS[0]: (LeftAlone("x.parquet", "is 5 s old: younger than 1 h"),), DAYS[1]: clicks.left[DAYS[1]]}
    for arguments in (("compact", "clicks", "-v"), ("-v", "compact", "clicks")):
        assert run(*arguments).stdout.splitlines()[1:] == each


def test_files_that_cannot_be_read_are_named_on_stderr_and_no_failure(run, clicks):
    clicks.left[DAYS[1]] = (LeftAlone("bad.parquet", "it is not a Parquet file", unusable=True),)

    for arguments in ((), ("--json",), ("--dry-run",)):
        result = run("compact", "clicks", *arguments)
        line = "streams/clicks 2026-01-02: bad.parquet: it is not a Parquet file\n"
        assert (result.exit_code, result.stderr) == (0, line)


def test_many_files_that_cannot_be_read_are_not_all_named(run, clicks):
    clicks.left[DAYS[1]] = tuple(LeftAlone(f"{number}", "it is encrypted", unusable=True) for number in range(60))

    warnings = run("compact", "clicks", "--json").stderr.splitlines()

    assert len(warnings) == 51
    assert warnings[-1] == "streams/clicks 2026-01-02: and 10 files more, which --json names"


def test_partition_that_fails_stops_no_other_and_is_exit_code_1(run, clicks):
    clicks.broken[DAYS[2]] = LakeUnavailable("/lake", "disk full")

    result = run("compact", "clicks")

    cure = "mend the lake's storage or DATALAKE_LAKE, then run it again"
    assert result.exit_code == 1
    assert result.stderr == f"Error: streams/clicks 2026-01-03: /lake: disk full; {cure}\n"
    assert result.stdout.splitlines()[-1].startswith("streams/clicks: 1 of 3 partitions compacted, files 40 -> 1,")
    document = json.loads(run("compact", "clicks", "--json").stdout)
    assert document["failed"] == [{"partition": "2026-01-03", "error": f"/lake: disk full; {cure}"}]
    assert [each["partition"] for each in document["partitions"]] == [DAYS[0], DAYS[1]]


def test_every_partition_failing_says_nothing_on_stdout(run, clicks):
    clicks.broken = dict.fromkeys(DAYS, CorruptLake("m", "x"))

    for arguments in ((), ("--dry-run",)):
        result = run("compact", "clicks", *arguments)
        assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (1, "", 3)


def test_json_is_one_document_with_a_record_per_partition_and_totals(run, clicks):
    clicks.left[DAYS[1]] = (LeftAlone("bad", "odd"),)

    document = json.loads(run("compact", "clicks", "--json").stdout)

    assert list(document) == ["feed", "partitions", *FIGURES]
    assert list(document["partitions"][0]) == ["partition", *FIGURES]
    figures = {"files_before": 40, "files_after": 1, "files_compacted": 40, "files_removed": 39, "bytes_before": 150}
    figures |= {"bytes_after": 100, "bytes_saved": 50, "rows": 1, "kernel": "reencode", "compaction_time_ms": 250}
    figures |= {"row_groups_merged": 0, "row_groups_encoded": 0}
    left = [{"name": "bad", "reason": "odd"}]
    assert document["partitions"][1] == {
        "partition": DAYS[1],
        **figures,
        "small_files_remaining": 1,
        "skipped": left,
        "decoded": [],
    }
    assert (document["files_before"], document["files_removed"], document["bytes_saved"]) == (1041, 1038, 100)
    assert (document["kernel"], document["rows"], document["small_files_remaining"]) == ("reencode", 2, 3)
    assert document["skipped"] == [{"partition": DAYS[1], **left[0]}]
    again = json.loads(run("compact", "clicks", "--json").stdout)
    assert (again["kernel"], again["files_compacted"], again["bytes_saved"]) == ("", 0, 0)


def test_options_become_the_request(run, clicks):
    run("compact", "clicks", "--force", "--target-file-size-mb", "32", "--max-files", "9", "--partition", DAYS[0])

    asked = CompactionRequest(force=True, target_file_bytes=32 * MIB, max_files=9, memory_bytes=400 * MIB)
    assert clicks.compacted == [(DAYS[0], asked, "")]


def test_settings_become_part_of_the_request(run, clicks, monkeypatch):
    monkeypatch.setenv("DATALAKE_ENV", "production")
    monkeypatch.setenv("DATALAKE_COMPACTION_MEMORY_MB", "64")

    run("compact", "clicks", "--partition", DAYS[0])

    assert clicks.compacted[0][1] == CompactionRequest(environment="production", memory_bytes=64 * MIB)


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (("--partition", DAYS[0], "--partition", DAYS[1], "--partition", DAYS[0]), [DAYS[1], DAYS[0]]),
        (("--range", "2025-12-30..2026-01-02"), [DAYS[1], DAYS[0]]),
        (("--range", "2026-01-03..2026-01-03"), [DAYS[2]]),
    ],
)
def test_partitions_are_chosen(run, clicks, arguments, keys):
    assert run("compact", "clicks", *arguments).exit_code == 0
    assert _asked(clicks) == keys


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nope",), "feed 'nope' does not exist; see 'datalake feeds list'"),
        (
            ("clicks", "--partition", DAYS[0], "--partition", "2025-12-31"),
            "feed 'clicks' has no partition '2025-12-31'; it has 3, from '2026-01-01' to '2026-01-03'",
        ),
        (("clicks", "--range", "2025-01-01..2025-01-31"), "feed 'clicks' has no partitions in 2025-01-01..2025-01-31"),
        (("clicks", "--range", "a"), "--range 'a' is not written as A..B, like 2025-01-01..2025-01-31"),
    ],
)
def test_what_is_not_there_is_one_line(run, clicks, arguments, message):
    result = run("compact", *arguments)

    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"Error: {message}\n")
    assert clicks.compacted == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing argument 'NAME'."),
        (("clicks", "--partition", "a", "--range", "a..b"), "give --partition or --range, not both"),
        (
            ("clicks", "--target-file-size-mb", "0"),
            "Invalid value for '--target-file-size-mb': 0 is not in the range 1<=x<=4096.",
        ),
        (
            ("clicks", "--target-file-size-mb", "big"),
            "Invalid value for '--target-file-size-mb': 'big' is not a valid integer range.",
        ),
        (("clicks", "--max-files", "1"), "Invalid value for '--max-files': 1 is not in the range x>=2."),
    ],
)
def test_usage_errors_are_exit_code_2(run, clicks, arguments, message):
    result = run("compact", *arguments)

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1] == f"Error: {message}"


def test_dry_run_says_what_would_be_merged_and_what_that_saves(run, clicks):
    clicks.left[DAYS[0]] = (LeftAlone("a", TOO_LARGE.format(130)),)
    worst, bad = (f"streams/clicks {key}" for key in (DAYS[2], DAYS[1]))
    total = "streams/clicks: 2 of 3 partitions to compact, files 1,040 -> 2"

    result = run("compact", "clicks", "--dry-run")

    assert (result.exit_code, result.stderr, clicks.compacted) == (0, "", [])
    assert result.stdout.splitlines() == [
        f"{worst}: files 1,000 -> 1, 97.7 KiB to rewrite for $0.25; saves 999 requests per scan, $0.50 a month",
        "  1,000 files, 97.7 KiB: all are small",
        f"{bad}: files 40 -> 1, 3.9 KiB to rewrite for $0.25; saves 39 requests per scan, $0.50 a month",
        "  40 files, 3.9 KiB: all are small",
        f"{total}, 101.6 KiB to rewrite for $0.50; saves 1,038 requests per scan, $1.00 a month",
        "left alone: 2026-01-01/a: is 130 MiB: above 128 MiB and never split",
    ]


def test_dry_run_with_nothing_to_do_is_one_line_and_the_reasons(run, clicks):
    clicks.small.clear()
    clicks.left[DAYS[0]] = tuple(LeftAlone(f"{size}", TOO_LARGE.format(size)) for size in range(130, 141))

    assert run("compact", "clicks", "--dry-run").stdout.splitlines() == [
        "streams/clicks: nothing to compact in 3 partitions",
        "left alone: 11 files, like 2026-01-01/130: above 128 MiB and never split",
    ]
    assert len(run("compact", "clicks", "--dry-run", "-v").stdout.splitlines()) == 12


def test_dry_run_as_json_has_every_plan_complete(run, clicks):
    clicks.left[DAYS[1]] = (LeftAlone("a", "odd"),)

    document = json.loads(run("compact", "clicks", "--dry-run", "--json").stdout)

    assert list(document) == ["feed", "partitions", "estimate", "tried_bytes", "untried_bytes"]
    (worst, plan, nothing) = document["partitions"]
    assert list(plan) == ["partition", "groups", "left_alone", "estimate"]
    assert len(worst["groups"][0]["files"]) == 1000
    (group,) = plan["groups"]
    assert list(group) == ["files", "size_bytes", "predicted_output_bytes", "reason"]
    assert (group["files"][39], group["size_bytes"], group["reason"]) == ("data_39.parquet", 4000, "all are small")
    assert plan["left_alone"] == [{"name": "a", "reason": "odd"}]
    assert plan["estimate"] == {
        "files_before": 40,
        "files_after": 1,
        "bytes_rewritten": 4000,
        "requests_saved": 39,
        "dollars_saved_per_month": 0.5,
        "dollars_cost": 0.25,
    }
    assert (nothing["groups"], document["estimate"]["files_before"]) == ([], 1041)


def test_dagster_is_told_of_each_compacted_partition(run, clicks, lake):
    run("compact", "clicks")

    with dagster_told(lake) as instance:
        records = instance.fetch_observations(dg.AssetKey(["streams", "clicks"]), limit=10).records
        assert instance.get_runs() == []
    assert {record.partition_key for record in records} == {DAYS[1], DAYS[2]}
    uri = records[0].asset_observation.metadata["dagster/uri"].value
    assert uri == f"{lake}/streams/clicks/year=2026/month=01/day=02"


def test_dagster_that_cannot_be_told_is_a_warning(run, clicks, tmp_path, monkeypatch):
    monkeypatch.setattr(event_queue, "MOST_WAITING", 0)  # nobody fetches what waits
    (tmp_path / "dagster").mkdir()
    (tmp_path / "dagster/dagster.yaml").write_text("storage: [\n")

    result = run("compact", "clicks")

    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 3)
    assert result.stderr.startswith("not shown in Dagster: ")
    assert len(result.stderr.splitlines()) == 1


def test_interrupt_leaves_told_what_was_committed_before(run, clicks, lake):
    clicks.broken[DAYS[1]] = KeyboardInterrupt()

    result = run("compact", "clicks")

    assert (result.exit_code, result.stderr) == (130, "Interrupted\n")
    with dagster_told(lake) as instance:
        (record,) = instance.fetch_observations(dg.AssetKey(["streams", "clicks"]), limit=10).records
    assert record.partition_key == DAYS[2]


def test_versions_of_a_table_have_no_range(run, registry, clicks):
    registry.add(table())

    result = run("compact", "users", "--range", "v1..v2")

    line = "Error: feed 'users' is a table and has no range of days; name its --partition\n"
    assert (result.exit_code, result.stderr) == (1, line)


@pytest.mark.parametrize(
    ("amount", "text"),
    [(1234.5, "$1,234.50"), (0.25, "$0.25"), (0.00512, "$0.0051"), (1e-6, "less than $0.0001"), (0, "$0.00")],
)
def test_dollars_have_digits_that_say_something(amount, text):
    assert planning._dollars(amount) == text
