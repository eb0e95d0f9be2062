"""Rules and footers, counted over real files."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.errors import ConfigError
from datalake_assets.lake.store import open_store
from datalake_assets.lake.tables import open_table
from datalake_assets.policies import NotNullRule, RangeRule, RegexRule, Rule, SqlRule, UniqueRule
from datalake_assets_tests.lake.feeds import numbered, stream_feed, stream_of

DAYS = ["2025-01-01", "2025-01-02"]


@pytest.fixture
def table(tmp_path: Path):
    (tmp_path / "lake").mkdir()
    written = open_table(open_store(str(tmp_path / "lake")), stream_feed())
    written.write(stream_of(numbered(range(48))), partitions=DAYS, run_id="r")
    return written


def counted(table, rule: Rule, keys=DAYS) -> list[tuple[str, int, int]]:
    return [(count.key, count.rows, count.broken) for _, count in table.count_broken([rule], keys)]


@pytest.mark.parametrize(
    ("rule", "broken"),
    [
        (NotNullRule(column="note"), (0, 0)),
        (RangeRule(column="id", min=2, max=40), (2, 7)),
        (RangeRule(column="rowtime", max="2025-01-02T00:00:00Z"), (0, 23)),
        (RegexRule(column="note", pattern="n[0-9]"), (14, 24)),  # the whole value
        (UniqueRule(columns=("id",)), (0, 0)),
        (UniqueRule(columns=("day",)), (23, 23)),
        (UniqueRule(columns=("day", "id")), (0, 0)),
        (SqlRule(name="q", query="SELECT * FROM data WHERE id % 10 = 0;"), (3, 2)),
    ],
    ids=str,
)
def test_rule_counts_the_rows_that_break_it_per_partition(table, rule, broken):
    assert counted(table, rule) == [(key, 24, count) for key, count in zip(DAYS, broken, strict=True)]


def test_unique_across_the_feed_sees_rows_of_different_partitions(table):
    table.write(stream_of(numbered([48, 49])), partitions=["2025-01-03"], run_id="r")

    assert counted(table, UniqueRule(columns=("month",), across="feed"), []) == [("", 50, 49)]
    assert counted(table, UniqueRule(columns=("id",), across="feed"), []) == [("", 50, 0)]


def test_rows_that_nobody_asked_for_are_not_read(table):
    assert counted(table, NotNullRule(column="id"), DAYS[:1]) == [(DAYS[0], 24, 0)]


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        (NotNullRule(column="colour"), "rule 'not_null_colour' names column 'colour'; the feed has id, note, rowtime"),
        (RangeRule(column="id", min="red"), "rule 'range_id' of feed 's' cannot be evaluated: Conversion Error"),
        (SqlRule(name="q", query="SELEC"), "cannot be evaluated: Parser Error"),
        (SqlRule(name="q", query="DROP VIEW data"), "cannot be evaluated: give one SELECT; nothing else is run here"),
        (SqlRule(name="q", query="SELECT 1; SELECT 2"), "give one SELECT"),
        (
            SqlRule(name="q", query="SELECT * FROM read_csv('/etc/hostname')"),
            "cannot be evaluated: table function 'read_csv' is not offered",
        ),
        (SqlRule(name="q", query="SELECT * FROM other"), "cannot be evaluated: Catalog Error"),
    ],
    ids=str,
)
def test_rule_that_cannot_be_evaluated_is_refused_with_the_reason(table, rule, complaint):
    with pytest.raises(ConfigError) as caught:
        counted(table, rule)

    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_footers_agree_with_the_manifest(table):
    found = table.snapshot([DAYS[0]]).footers(DAYS[0])

    assert (found.files, found.rows, found.columns, found.drifts) == (1, 24, 3, ())


def data_file(table) -> Path:
    (found,) = Path(table._folder.store.path("streams/s/year=2025/month=01/day=01")).iterdir()
    return found


@pytest.mark.parametrize(
    ("change", "drift"),
    [
        (lambda rows: rows.append_column("extra", rows["id"]), "has a column 'extra' that the feed hasn't"),
        (lambda rows: rows.drop_columns(["note"]), "has no column 'note'"),
        (
            lambda rows: rows.set_column(0, "id", rows["id"].cast(pa.string())),
            "'id' is string, not int64",
        ),
    ],
)
def test_footers_tell_how_a_files_columns_differ(table, change, drift):
    path = data_file(table)
    pq.write_table(change(pq.ParquetFile(path).read()), path)

    (found,) = table.snapshot([DAYS[0]]).footers(DAYS[0]).drifts

    assert (found.name, found.what) == (path.name, drift)


def test_footers_name_a_file_that_cannot_be_read(table):
    path = data_file(table)
    path.write_bytes(b"PAR1 and nothing else")

    found = table.snapshot([DAYS[0]]).footers(DAYS[0])

    assert found.rows == 0
    assert [each.name for each in found.drifts] == [path.name]
    assert found.drifts[0].what.startswith("cannot be read: ")
