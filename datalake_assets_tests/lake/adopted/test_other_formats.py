"""Folders inside tables of other formats are never taken over, and no longer compacted once they are such a table's.

Delta and Iceberg tables are written by their own libraries, the others by hand as their writers lay them out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from pathlib import Path, PurePosixPath

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog.sql import SqlCatalog

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.core.table_formats import table_mark
from datalake_assets.errors import ConfigError
from datalake_assets.lake.adopted import marks
from datalake_assets.lake.adopted.adoption import adopt
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.lake.adopted.adopted_folder import refused

ROWS = pa.table({"day": ["1", "1", "2"], "id": [1, 2, 3]})
MARKER = ".datalake-owner-clicks.json"
UUID = "0a1b2c3d-0a1b-4c3d-8e5f-0a1b2c3d4e5f"


def write(path: Path, rows: pa.Table = ROWS, **metadata: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows.replace_schema_metadata(metadata), path)


def mark(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"{}")


def delta(at: Path) -> None:
    for _ in range(2):
        deltalake.write_deltalake(at, ROWS, partition_by=["day"], mode="append")


def iceberg(at: Path) -> None:
    catalog = SqlCatalog("c", uri=f"sqlite:///{at.parent}/catalog.db", warehouse=f"file://{at.parent}")
    catalog.create_namespace("n")
    table = catalog.create_table("n.t", ROWS.schema, location=f"file://{at}")
    with table.update_spec() as spec:
        spec.add_identity("day")
    table.append(ROWS)
    table.append(ROWS)


def hudi(at: Path) -> None:
    mark(at / ".hoodie/hoodie.properties")
    for day in ("day=1", "day=2"):
        mark(at / f"a/b/{day}/.hoodie_partition_metadata")
        for name in (1, 2):
            write(at / f"a/b/{day}/{UUID}-{name}_0-1-1_20240101000000000.parquet")


def hive_acid(at: Path) -> None:
    for transaction in (1, 2):
        write(at / f"day=1/delta_000000{transaction}_000000{transaction}_0000/000000_0")
    write(at / "day=1/base_0000005_v0000012/000000_0")
    mark(at / "day=1/base_0000005_v0000012/_orc_acid_version")


def spark_sink(at: Path) -> None:
    mark(at / "_spark_metadata/0")
    write(at / "day=1/part-00000.parquet")
    write(at / "day=1/part-00001.parquet")


def paimon(at: Path) -> None:
    mark(at / "schema/schema-0")
    mark(at / "snapshot/snapshot-1")
    for number in (0, 1):
        write(at / f"dt=1/bucket-0/data-{UUID}-{number}.parquet")


def lance(at: Path) -> None:
    mark(at / "_versions/1.manifest")
    write(at / "data/0.parquet")


def ducklake(at: Path) -> None:
    write(at / f"main/t/ducklake-{UUID}.parquet")


def databricks(at: Path) -> None:
    """Two files of a write that was committed, one of a write that never was."""
    for day in ("day=1", "day=2"):
        mark(at / day / "_started_4711")
        mark(at / day / "_committed_4711")
        mark(at / day / "_started_4712")
        for number in (0, 1):
            write(at / day / f"part-0000{number}-tid-4711-{UUID}-{number}-c000.snappy.parquet")
        write(at / day / f"part-00002-tid-4712-{UUID}-2-c000.snappy.parquet")


def impala(at: Path) -> None:
    mark(at / "_impala_insert_staging/af4b_0/.af4b_0_dir/day=1/af4b.0.parq")
    for number in (0, 1):
        write(at / f"day=1/af4{number}-c0_1_data.0.parq")


def bucketed(at: Path) -> None:
    for number in (0, 1):
        write(at / f"day=1/part-0000{number}-{UUID}_0000{number}.c000.snappy.parquet")


def bucketed_by_trino(at: Path) -> None:
    for number in (0, 1):
        write(at / f"day=1/00000{number}_0_20240131_101112_00042_abc9z")


def hdfs_sink(at: Path) -> None:
    for number in (0, 1):
        write(at / f"partition={number}/clicks+{number}+0000000000+0000000004.parquet")


def another_lake(at: Path) -> None:
    mark(at / "feeds/active/s.json")
    mark(at / "control/streams/s/year=2025/month=01/manifest.json")
    write(at / "streams/s/year=2025/month=01/data_20250101_000000_0.parquet")


FORMATS: dict[str, Callable[[Path], None]] = {
    "a Delta table": delta,
    "an Iceberg table": iceberg,
    "a Hudi table": hudi,
    "a transactional table of Hive": hive_acid,
    "a Spark streaming sink": spark_sink,
    "a Paimon table": paimon,
    "a Lance dataset": lance,
    "a DuckLake table": ducklake,
    "a folder of transactional writes of Databricks": databricks,
    "a table into which Impala inserts": impala,
    "a bucketed table": bucketed,
    "a bucketed table (of Trino)": bucketed_by_trino,
    "a folder of Kafka Connect's HDFS sink": hdfs_sink,
    "a lake of this package": another_lake,
}


def everything(folder) -> dict[str, str]:
    """What lies in the folder's parent, by path, with a digest of each."""
    return {
        info.key: hashlib.sha256(folder.store.get(info.key)[0]).hexdigest()
        for info in folder.store.list("")
        if not info.key.endswith(".db")
    }


def folders_with_files(paths) -> set[str]:
    """Each folder that has Parquet files somewhere below it."""
    return {
        str(above)
        for path in paths
        if path.endswith((".parquet", ".parq", "000000_0", "_abc9z"))
        for above in PurePosixPath(path).parents
        if str(above) != "."
    }


@pytest.fixture
def laid_out(folder, tmp_path):
    """Lays a table out in the adopted folder's parent, on whatever store."""

    def lay_out(make: Callable[[Path], None]) -> dict[str, str]:
        here = tmp_path / "made"
        at = here / "db/tables/t"
        at.parent.mkdir(parents=True)
        make(at)
        for file in here.rglob("*"):
            if file.is_file() and not file.name.endswith(".db"):
                folder.store.put(file.relative_to(here).as_posix(), file.read_bytes())
        return everything(folder)

    return lay_out


def on_stores(cases: Collection[str], *on_s3: str) -> list[object]:
    """All cases on a disk, and on S3 those that differ in what is asked of the store."""
    s3 = [pytest.param("s3", case, marks=pytest.mark.s3) for case in cases if case in on_s3]
    return [*(("local", case) for case in cases), *s3]


@pytest.mark.parametrize(
    ("store", "name"),
    on_stores(FORMATS, "an Iceberg table", "a folder of transactional writes of Databricks"),
    indirect=["store"],
)
def test_folder_anywhere_inside_or_around_a_table_is_refused_and_untouched(store, folder, laid_out, name):
    before = laid_out(FORMATS[name])

    tried = sorted(folders_with_files(before))
    for path in tried:
        line = refused(lambda path=path: adopt(store, f"{folder.store.uri}/{path}", "clicks"))
        assert name.partition(" (")[0] in line, path
        assert line.startswith(f"{folder.store.uri}/{path} ")
    assert "db" in tried
    assert len(tried) >= 4
    assert everything(folder) == before
    assert FeedRegistry(store).list().feeds == ()
    assert not list(store.list("control/folders"))


def test_files_that_were_moved_out_of_a_table_are_known_by_their_footers(store, folder, tmp_path):
    cases = {
        "iceberg": ("an Iceberg", {"iceberg.schema": "{}"}),
        "hudi": ("a Hudi", {"org.apache.hudi.bloomfilter": "x"}),
        "influx": ("a table of InfluxDB", {"IOX:metadata": "x"}),
        "greptime": ("a table of GreptimeDB", {"greptime:metadata": "x"}),
    }
    for name, (whose, metadata) in cases.items():
        write(tmp_path / "a.parquet", **metadata)
        folder.put(f"{name}/plain.parquet", (tmp_path / "a.parquet").read_bytes())

        line = refused(lambda name=name: adopt(store, f"{folder.uri}/{name}", "clicks"))
        own = "adopt the table itself with 'datalake adopt iceberg:NAMESPACE.TABLE --catalog CATALOG --name NAME'"
        cure = own if name == "iceberg" else "use that format's own tools"
        assert line == (
            f"{folder.uri}/{name} holds a file of {whose if ' of ' in whose else f'{whose} table'},"
            f" {folder.uri}/{name}/plain.parquet: its log says which files count, and compaction would corrupt it;"
            f" {cure}, or copy the rows into a folder of their own"
        )


@pytest.fixture
def adopted(store, folder):
    for number in range(4):
        folder.write(f"a/day=1/{number}.parquet", [number])
    return open_table(store, adopt(store, folder.uri, "clicks").feed)


MARKS = {
    "_delta_log/0.json": "a Delta table",
    "clicks/_symlink_format_manifest/day=1/manifest": "a Delta table",
    f"clicks/deletion_vector_{UUID}.bin": "a Delta table",
    "clicks/metadata/v1.metadata.json": "an Iceberg table",
    f"clicks/a/day=1/00000-0-{UUID}-00001-deletes.puffin": "an Iceberg table",
    "clicks/a/.hoodie/hoodie.properties": "a Hudi table",
    "clicks/a/day=1/.hoodie_partition_metadata": "a Hudi table",
    "_spark_metadata/0": "a Spark streaming sink",
    "clicks/a/_started_12": "a folder of transactional writes of Databricks",
    "_committed_8913": "a folder of transactional writes of Databricks",
    "clicks/a/day=1/_committed_vacuum12": "a folder of transactional writes of Databricks",
    "clicks/a/day=1/_metadata_acid": "a transactional table of Hive",
    "clicks/_orc_acid_version": "a transactional table of Hive",
    "clicks/schema/schema-0": "a Paimon table",
    "snapshot/LATEST": "a Paimon table",
    "_latest.manifest": "a Lance dataset",
    f"clicks/_transactions/0-{UUID}.txn": "a Lance dataset",
    "clicks/a/_versions/d18446744073709551614.manifest": "a Lance dataset",
    "clicks/_impala_insert_staging/4e_0/x.parq": "a table into which Impala inserts",
    f"clicks/a/day=1/part-00003-{UUID}_00003.c000.zstd.parquet": "a bucketed table",
}


@pytest.mark.parametrize(
    ("store", "path"),
    on_stores(MARKS, "_delta_log/0.json", "_committed_8913", "clicks/_orc_acid_version", "snapshot/LATEST"),
    indirect=["store"],
)
def test_folder_that_was_made_a_table_since_is_not_compacted(adopted, folder, path):
    folder.store.put(path, b"{}")
    before = everything(folder)

    with pytest.raises(ConfigError, match=rf" (is|lies in|holds) {MARKS[path]}"):
        adopted.compact("a/day=1", CompactionRequest(force=True))
    assert everything(folder) == before


@pytest.mark.parametrize(
    "name",
    [
        f"part-00000-{UUID}-c000.snappy.parquet",
        f"part-00000-tid-8913-{UUID}-1-c000.snappy.parquet",
        "000000_0",
        "000000_0_copy_1",
        "clicks+0+0000000000.snappy.parquet",
        f"20240131_101112_00042_abc9z_{UUID}",
        "_committed_by_bob",
        "_started_",
        "metadata/notes.json",
        "a.manifest",
    ],
)
def test_name_that_is_only_like_a_mark_is_none(name):
    assert table_mark(f"day=1/{name}") is None


def test_folder_that_is_made_a_table_during_a_rewrite_is_not_compacted(adopted, folder, monkeypatch):
    monkeypatch.setattr(marks, "FRESH_S", 0.0)

    def converted(_: object) -> None:
        folder.put("_delta_log/00000000000000000000.json", b"{}")

    before = everything(folder)
    with pytest.raises(ConfigError, match="Delta table"):
        adopted.compact("a/day=1", CompactionRequest(force=True), on_progress=converted)
    after = everything(folder)
    assert after.pop("clicks/_delta_log/00000000000000000000.json")
    assert after.pop(MARKER) != before.pop(MARKER)  # the claim was renewed before the rewrite
    assert after == before
    assert not list(folder.store.list_staged(""))


def test_file_of_a_table_that_joins_later_stops_the_next_look(adopted, folder, tmp_path):
    write(tmp_path / "a.parquet", **{"iceberg.schema": "{}"})
    folder.put("a/day=1/plain.parquet", (tmp_path / "a.parquet").read_bytes())

    with pytest.raises(ConfigError, match="holds a file of an Iceberg table"):
        adopted.look_again()
    with pytest.raises(ConfigError, match="holds a file of an Iceberg table"):
        adopted.compact("a/day=1", CompactionRequest(force=True))
    assert len(folder.files()) == 5


def test_looks_above_are_bounded_and_not_repeated_at_once(adopted, folder, store):
    look = marks.TableMarks(adopted._folder)
    counted: list[str] = []
    original = marks._mark

    def counting(level, name):
        counted.append(f"{level.path}/{name}")
        return original(level, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(marks, "_mark", counting)
        look.check("a/day=1")
        levels = len(f"{folder.uri}/a/day=1".removeprefix("s3://").split("/"))  # the root is one, too
        assert (
            len(counted)
            == len(set(counted))
            == levels * len((*marks.FOLDERS_ABOVE, *marks.FILES_ABOVE, *marks.BEGINNINGS_ABOVE))
        )
        look.check("a/day=1")
        assert len(counted) == len(set(counted))


def test_plain_folder_beside_a_table_is_adopted(store, folder):
    folder.store.put("table/_delta_log/0.json", b"{}")
    folder.write("a.parquet", [1])

    assert adopt(store, folder.uri, "clicks").is_new
