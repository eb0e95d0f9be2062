"""Folders of other writers, by command: adopted, compacted and verified, and read again by who wrote them."""

from __future__ import annotations

import json
import shutil

import fastparquet
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from datalake_assets.cli.app import app
from datalake_assets_tests.cli.conftest import _logging_as_before, _own_settings  # noqa: F401  # fixtures
from datalake_assets_tests.interop.canonical import differences, rows_of_arrow
from datalake_assets_tests.interop.damage import DAMAGES, ROWS, encrypted, good
from datalake_assets_tests.interop.names import ALL_WRITERS, needs_spark
from datalake_assets_tests.interop.readers import read_fastparquet, read_pyarrow, spark_reader
from datalake_assets_tests.interop.torture import TABLE, parts

#: Only what the footer shows is seen when a folder is adopted.
IN_PAGES = {"cut at the start", "page header garbled", "page garbled", "bit of a page with a checksum"}


@pytest.fixture
def lake(tmp_path):
    folder = tmp_path / "lake"
    folder.mkdir()
    return folder


@pytest.fixture
def theirs(tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    return folder


@pytest.fixture
def run(lake):
    def command(*arguments: str, exit_code: int = 0):
        result = CliRunner().invoke(app, ["--lake", str(lake), *arguments, "--json"], prog_name="datalake")
        assert result.exit_code == exit_code, result.output
        return json.loads(result.stdout)

    return command


def data_files(folder):
    return sorted(path for path in folder.rglob("*.parquet") if path.is_file())


@pytest.mark.parametrize(
    "writer",
    [name for name in ALL_WRITERS if name.values[0] != "spark-legacy"],  # not pandas'
)
def test_folder_of_one_writer_is_one_file_afterwards(writer, run, inputs, theirs):
    paths = [shutil.copy(path, theirs) for path in inputs(writer, "")]
    before = read_pyarrow(paths)

    adopted = run("adopt", str(theirs), "--name", "theirs")
    assert (adopted["files"], adopted["rows"], adopted["damaged"], adopted["left_out"]) == (3, len(TABLE), [], [])
    run("compact", "theirs", "--force")
    verified = run("verify", "theirs", "--deep")

    assert verified["differences"] == []
    (merged,) = data_files(theirs)
    assert differences(read_pyarrow([merged]), before) == {}


def test_damaged_files_are_named_and_stay_and_the_others_are_merged(run, theirs):
    bodies = {f"{name.replace(' ', '-')}.parquet": damage() for name, damage in DAMAGES.items()}
    bodies["encrypted-column.parquet"] = encrypted(plaintext_footer=True)
    bodies |= {"_SUCCESS": b"", ".a.parquet.crc": b"crc", "c.parquet.tmp": b"half", "notes.txt": b"text"}
    for name, body in bodies.items():
        (theirs / name).write_bytes(body)
    for number in range(3):
        (theirs / f"good-{number}.parquet").write_bytes(good(number * ROWS))
    inner = theirs / "folder.parquet"
    inner.mkdir()
    (inner / "good.parquet").write_bytes(good(3 * ROWS))

    adopted = run("adopt", str(theirs), "--name", "theirs")
    compacted = run("compact", "theirs", "--force", exit_code=1)

    in_pages = {f"{name.replace(' ', '-')}.parquet" for name in IN_PAGES}
    damaged = {name for name in bodies if name.endswith(".parquet") and not name.startswith((".", "_"))}
    told_by_checksums = {"bit-of-a-page-with-a-checksum.parquet"}
    assert {each["name"] for each in adopted["damaged"]} == (damaged - in_pages) | told_by_checksums
    assert all(name in json.dumps(compacted) for name in in_pages)
    assert {name: (theirs / name).read_bytes() for name in bodies} == bodies
    (merged,) = [path for path in theirs.glob("*.parquet") if path.is_file() and path.name not in bodies]
    assert pq.read_table(merged)["id"].to_pylist() == list(range(3 * ROWS))
    assert pq.read_table(inner)["id"].to_pylist() == list(range(3 * ROWS, 4 * ROWS))
    found = run("verify", "theirs", "--deep", exit_code=1)["differences"]
    assert {each["name"].rpartition("/")[2] for each in found} >= damaged


def test_folder_with_fastparquets_summary_is_read_by_it_as_before(run, lake, theirs):
    table = TABLE.select(["id", "text", "flag"])
    for part in parts(table):
        again = (theirs / "_metadata").exists()
        fastparquet.write(str(theirs), part.to_pandas(), file_scheme="hive", append=again, write_index=False)

    run("adopt", str(theirs), "--name", "theirs")
    declared = lake / "feeds" / "active" / "theirs.json"
    feed = json.loads(declared.read_text())
    feed["compaction"] |= {"summary_files": "remove"}  # it would name files that are gone
    declared.write_text(json.dumps(feed))
    run("compact", "theirs", "--force")

    assert len(data_files(theirs)) == 1
    assert not (theirs / "_metadata").exists()
    assert differences(read_fastparquet(data_files(theirs)), rows_of_arrow(table)) == {}


@needs_spark
@pytest.mark.parametrize("moments", ["recent", "utc_us"])
def test_folders_that_spark_partitioned_are_read_by_spark_as_before(moments, run, spark, theirs, tmp_path):
    source = tmp_path / "source.parquet"
    days = pa.array([f"2025-01-0{row % 3 + 1}" for row in range(len(TABLE))])
    for part in parts(TABLE.select(["id", "text", moments, "decimal38", "points"]).append_column("day", days)):
        pq.write_table(part, source)
        spark.read.parquet(str(source)).write.mode("append").partitionBy("day").parquet(str(theirs))
    before = spark_reader(spark)([theirs])

    adopted = run("adopt", str(theirs), "--name", "theirs")
    run("compact", "theirs", "--force")
    run("verify", "theirs", "--deep")

    assert (adopted["partitions"], adopted["files"]) == (3, 9)
    assert len(data_files(theirs)) == 3
    assert differences(spark_reader(spark)([theirs]), before) == {}
