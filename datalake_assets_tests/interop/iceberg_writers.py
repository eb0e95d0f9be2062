# ruff: noqa: ISC004, S608  statements are long, and all names are our own
"""Iceberg tables as Spark and DuckDB write them, in an interpreter that has these; standard library and these alone.

``python -m datalake_assets_tests.interop.iceberg_writers spark|duckdb write|read PROPERTIES`` (JSON) prints, for each
table, how many rows it has and a sum over all of their values. See `iceberg_engines`.
"""

from __future__ import annotations

import itertools
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

#: Of Debian's package libxerial-sqlite-jdbc-java.
SQLITE_JAR = "/usr/share/java/sqlite-jdbc.jar"
MERGE_ON_READ = ", ".join(f"'write.{what}.mode'='merge-on-read'" for what in ("delete", "update", "merge"))
ROWS = "id bigint, ts timestamp, region string, amount decimal(12,2), share double"
SOME = """select id, timestampadd(HOUR, cast(id as int), timestamp'2026-01-01 00:00:00') as ts,
 if(id % 7 = 0, null, concat('r', id % 3)) as region, cast(id as decimal(12,2)) / 4 as amount,
 if(id % 11 = 0, double('nan'), id / 8.0D) as share from range({0}, {1})"""


def inserts(name: str, bounds: str = "0 40 90 100 130 131") -> list[str]:
    """Statements that append rows to a table of `ROWS` in several snapshots."""
    numbers = bounds.split()
    pairs = itertools.pairwise(numbers)
    return [f"insert into {name} " + SOME.format(first, end) for first, end in pairs]


#: Statements by table; ``TABLE`` is its name.
SPARK: dict[str, list[str]] = {
    "plain": [f"create table TABLE ({ROWS}) using iceberg", *inserts("TABLE")],
    "empty": [f"create table TABLE ({ROWS}) using iceberg"],
    "by_day": [f"create table TABLE ({ROWS}) using iceberg partitioned by (days(ts))", *inserts("TABLE")],
    "by_month": [f"create table TABLE ({ROWS}) using iceberg partitioned by (months(ts))", *inserts("TABLE")],
    "by_hour": [f"create table TABLE ({ROWS}) using iceberg partitioned by (hours(ts))", *inserts("TABLE", "0 5 9")],
    "by_year": [f"create table TABLE ({ROWS}) using iceberg partitioned by (years(ts))", *inserts("TABLE")],
    "by_region": [f"create table TABLE ({ROWS}) using iceberg partitioned by (region)", *inserts("TABLE")],
    "by_share": [f"create table TABLE ({ROWS}) using iceberg partitioned by (share)", *inserts("TABLE", "0 3 5 12 23")],
    "by_bucket": [f"create table TABLE ({ROWS}) using iceberg partitioned by (bucket(4, id))", *inserts("TABLE")],
    "by_truncated": [f"create table TABLE ({ROWS}) using iceberg partitioned by (truncate(50, id))", *inserts("TABLE")],
    "by_several": [
        f"create table TABLE ({ROWS}) using iceberg partitioned by (days(ts), region, bucket(2, id))",
        *inserts("TABLE", "0 30 60"),
    ],
    "deleted_on_read": [
        f"create table TABLE ({ROWS}) using iceberg partitioned by (days(ts)) tblproperties ({MERGE_ON_READ})",
        *inserts("TABLE"),
        "delete from TABLE where id % 5 = 2",
        "update TABLE set amount = amount + 1 where id % 9 = 0",
        "delete from TABLE where id between 50 and 60",
    ],
    "deleted_by_file": [
        f"create table TABLE ({ROWS}) using iceberg tblproperties ({MERGE_ON_READ},'write.delete.granularity'='file')",
        *inserts("TABLE"),
        "delete from TABLE where id % 5 = 2",
    ],
    "deleted_on_write": [
        f"create table TABLE ({ROWS}) using iceberg partitioned by (days(ts))",
        *inserts("TABLE"),
        "delete from TABLE where id % 5 = 2",
    ],
    "merged": [
        f"create table TABLE ({ROWS}) using iceberg tblproperties ({MERGE_ON_READ})",
        *inserts("TABLE", "0 50 100"),
        f"merge into TABLE t using ({SOME.format(40, 140)}) s on t.id = s.id"
        " when matched and s.id % 2 = 0 then delete when matched then update set amount = -s.amount"
        " when not matched then insert *",
    ],
    "overwritten": [
        f"create table TABLE ({ROWS}) using iceberg partitioned by (days(ts))",
        *inserts("TABLE"),
        "insert overwrite TABLE " + SOME.format(10, 20),
    ],
    "version_1": [
        f"create table TABLE ({ROWS}) using iceberg partitioned by (days(ts)) tblproperties ('format-version'='1')",
        *inserts("TABLE"),
    ],
    "version_3": [
        f"create table TABLE ({ROWS}) using iceberg tblproperties ('format-version'='3',{MERGE_ON_READ})",
        *inserts("TABLE"),
        "delete from TABLE where id % 5 = 2",
    ],
    "evolved_columns": [
        "create table TABLE (id int, n float, d decimal(6,2), old string, s struct<a: int, b: string>) using iceberg",
        "insert into TABLE select cast(id as int), cast(id / 4 as float), cast(id as decimal(6,2)), concat('o', id),"
        " named_struct('a', cast(id as int), 'b', 'x') from range(0, 20)",
        "alter table TABLE alter column id type bigint",
        "alter table TABLE alter column n type double",
        "alter table TABLE alter column d type decimal(12,2)",
        "alter table TABLE rename column old to name",
        "alter table TABLE add column more map<string, array<int>>",
        "alter table TABLE add column s.c double",
        "alter table TABLE alter column name first",
        "insert into TABLE select concat('n', id), id + 5000000000, id / 3D, cast(id as decimal(12,2)) * 1000000,"
        " named_struct('a', 1, 'b', null, 'c', double('nan')), map('k', array(1, null)) from range(20, 40)",
        "alter table TABLE drop column n",
        "insert into TABLE select 'last', id, 0, null, null from range(40, 45)",
    ],
    "evolved_partitions": [
        f"create table TABLE ({ROWS}) using iceberg partitioned by (months(ts))",
        *inserts("TABLE", "0 30 60"),
        "alter table TABLE replace partition field ts_month with days(ts)",
        *inserts("TABLE", "60 90"),
        "alter table TABLE add partition field region",
        *inserts("TABLE", "90 120 130"),
        "alter table TABLE drop partition field region",
        *inserts("TABLE", "130 140 150"),
    ],
    "void_partition": [
        f"create table TABLE ({ROWS}) using iceberg partitioned by (region) tblproperties ('format-version'='1')",
        *inserts("TABLE", "0 30 60"),
        "alter table TABLE drop partition field region",
        *inserts("TABLE", "60 90 95"),
    ],
    "all_types": [
        "create table TABLE (b boolean, i int, l bigint, f float, d double, e decimal(38,10), t date, z timestamp,"
        " n timestamp_ntz, s string, x binary, a array<struct<p: int, q: array<string>>>, m map<string, decimal(5,1)>)"
        " using iceberg",
        *(
            "insert into TABLE select id % 2 = 0, cast(-id as int), id * 4611686018427387, cast('nan' as float),"
            " -0.0D, cast(id as decimal(38,10)) / 3, date'1500-01-01' + cast(id as int),"
            " timestamp'1900-01-01 00:00:00' - make_interval(0,0,0,cast(id as int)),"
            " timestamp_ntz'9999-12-31 23:59:59',"
            " concat('ü\\n', id), cast(concat('x', id) as binary), array(named_struct('p', 1, 'q', array(null, 'y'))),"
            f" map('k', null, 'j', 1.5) from range({first}, {first + 10})"
            for first in (0, 10, 20)
        ),
        "insert into TABLE select null, null, null, null, null, null, null, null, null, null, null, null, null",
    ],
    "odd_names": [
        "create table TABLE (`a.b` bigint, `Über` string, `with space` int, `select` date) using iceberg"
        " partitioned by (`with space`)",
        *(f"insert into TABLE select id, 'x', id % 2, null from range({n}, {n + 5})" for n in (0, 5, 10)),
    ],
    "sorted": [
        f"create table TABLE ({ROWS}) using iceberg partitioned by (days(ts))",
        "alter table TABLE write ordered by region desc nulls last, id",
        *inserts("TABLE"),
    ],
    "gzip": [
        f"create table TABLE ({ROWS}) using iceberg tblproperties"
        " ('write.parquet.compression-codec'='gzip','write.metadata.compression-codec'='gzip')",
        *inserts("TABLE"),
    ],
    "small_groups": [
        f"create table TABLE ({ROWS}) using iceberg tblproperties"
        " ('write.parquet.row-group-size-bytes'='512','write.parquet.page-size-bytes'='128',"
        "'write.parquet.bloom-filter-enabled.column.id'='true','write.metadata.metrics.default'='none')",
        *inserts("TABLE", "0 400 900"),
    ],
    "orc": [
        f"create table TABLE ({ROWS}) using iceberg tblproperties ('write.format.default'='orc')",
        *inserts("TABLE", "0 30 60"),
    ],
    "avro": [
        f"create table TABLE ({ROWS}) using iceberg tblproperties ('write.format.default'='avro')",
        *inserts("TABLE", "0 30 60"),
    ],
    "mixed_formats": [
        f"create table TABLE ({ROWS}) using iceberg",
        *inserts("TABLE", "0 30 60"),
        "alter table TABLE set tblproperties ('write.format.default'='orc')",
        *inserts("TABLE", "60 90"),
    ],
    "kept_by_tag": [
        f"create table TABLE ({ROWS}) using iceberg tblproperties ({MERGE_ON_READ})",
        *inserts("TABLE", "0 30 60"),
        "alter table TABLE create tag audit",
        "alter table TABLE create branch other",
        "delete from TABLE where id < 10",
    ],
    "rolled_back": [
        f"create table TABLE ({ROWS}) using iceberg",
        *inserts("TABLE", "0 30 60"),
        "alter table TABLE create tag first",
        "delete from TABLE where id < 50",
        "call lake.system.set_current_snapshot(table => 'n.rolled_back', ref => 'first')",
        *inserts("TABLE", "60 70"),
    ],
    "rewritten": [
        f"create table TABLE ({ROWS}) using iceberg partitioned by (days(ts)) tblproperties ({MERGE_ON_READ})",
        *inserts("TABLE"),
        "delete from TABLE where id % 5 = 2",
        "call lake.system.rewrite_data_files(table => 'n.rewritten', where => 'id < 40')",
        "call lake.system.rewrite_manifests('n.rewritten')",
        *inserts("TABLE", "200 205 210"),
    ],
    "name_mapped": [
        f"create table TABLE ({ROWS}) using iceberg",
        "call lake.system.add_files(table => 'n.name_mapped', source_table => '`parquet`.`FOLDER/plain_parquet`')",
        *inserts("TABLE", "0 30 60"),
    ],
}
ROWS_OF_DUCKDB = "id bigint, ts timestamptz, region varchar, amount decimal(12,2), share double"
SOME_OF_DUCKDB = (
    "select range, timestamptz '2026-01-01 00:00:00+00' + to_hours(range), case when range % 7 = 0 then null else"
    " 'r' || range % 3 end, range::decimal(12,2), case when range % 11 = 0 then 'nan'::double else range / 8 end"
    " from range({0}, {1})"
)


def duckdb_inserts(bounds: str) -> list[str]:
    """As `inserts`."""
    numbers = bounds.split()
    pairs = itertools.pairwise(numbers)
    return ["insert into TABLE " + SOME_OF_DUCKDB.format(first, end) for first, end in pairs]


DUCKDB: dict[str, list[str]] = {
    "plain": [f"create table TABLE ({ROWS_OF_DUCKDB})", *duckdb_inserts("0 40 90 100")],
    "by_day": [f"create table TABLE ({ROWS_OF_DUCKDB}) partitioned by (day(ts))", *duckdb_inserts("0 40 90 100")],
    "by_bucket": [f"create table TABLE ({ROWS_OF_DUCKDB}) partitioned by (bucket(3, id))", *duckdb_inserts("0 40 90")],
    "deleted": [
        f"create table TABLE ({ROWS_OF_DUCKDB})",
        *duckdb_inserts("0 40 90 100"),
        "delete from TABLE where id % 5 = 2",
        "update TABLE set region = 'changed' where id % 9 = 0",
    ],
    "altered": [
        f"create table TABLE ({ROWS_OF_DUCKDB})",
        *duckdb_inserts("0 40 90"),
        "alter table TABLE add column more integer",
        "alter table TABLE rename column region to place",
        "insert into TABLE select 1000, null, 'x', 1.5, 2, 3",
    ],
    "all_types": [
        "create table TABLE (b boolean, i integer, l bigint, f float, d double, e decimal(38,10), t date, u uuid,"
        " z timestamptz, n timestamp, c time, s varchar, x blob, a integer[], r struct(p integer, q varchar))",
        *(
            "insert into TABLE select range % 2 = 0, -range, range, 'nan', -0.0, range / 3, date '1500-01-01', uuid(),"
            " timestamptz '1900-01-01 00:00:00+00', timestamp '2200-12-31 23:59:59', time '12:34:56.789012',"
            " 'ü' || range,"
            f" 'x'::blob, [1, null], {{'p': 1, 'q': null}} from range({first}, {first + 10})"
            for first in (0, 10)
        ),
    ],
}


def spark(what: str, given: dict[str, Any]) -> dict[str, Any]:
    """Writes the tables with Spark into a SQLite catalog, or reads them."""
    folder, package = given["folder"], import_module("snowpark_connect_deps_iceberg")
    (jar,) = Path(package.__path__[0]).glob("jars/iceberg-spark-runtime-3.5_2.12-*.jar")
    settings = {
        "spark.jars": f"{jar},{SQLITE_JAR}",
        "spark.driver.memory": "1200m",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Djava.net.preferIPv4Stack=true",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "1",
        "spark.sql.warehouse.dir": f"{folder}/spark-warehouse",
        "spark.sql.extensions": "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions",
        "spark.sql.catalog.lake": "org.apache.iceberg.spark.SparkCatalog",
        "spark.sql.catalog.lake.catalog-impl": "org.apache.iceberg.jdbc.JdbcCatalog",
        "spark.sql.catalog.lake.uri": f"jdbc:sqlite:{folder}/catalog.db",
        "spark.sql.catalog.lake.warehouse": f"file://{folder}/warehouse",
        "spark.sql.catalog.lake.jdbc.schema-version": "V1",
    }
    builder = import_module("pyspark.sql").SparkSession.builder.master("local[2]")
    for key, value in settings.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    if what == "write":
        session.sql("create namespace if not exists lake.n")
        session.sql(
            f"select id, ts, region, cast(amount as decimal(12,2)) as amount, share from ({SOME.format(500, 520)})"
        ).write.parquet(f"{folder}/plain_parquet")
    found = {}
    for name, statements in SPARK.items():
        if what == "write":
            for statement in statements:
                session.sql(statement.replace("TABLE", f"lake.n.{name}").replace("FOLDER", folder)).collect()
        total = "sum(cast(xxhash64(to_json(struct(*), map('ignoreNullFields', 'false'))) as decimal(38,0)))"
        columns = sorted(session.table(f"lake.n.{name}").columns)
        quoted = ", ".join(f"`{each}`" for each in columns)
        rows, values = session.sql(f"select count(*), {total} from (select {quoted} from lake.n.{name})").first()
        found[name] = {"rows": rows, "values": str(values)}
    session.stop()
    return found


def duckdb(what: str, given: dict[str, Any]) -> dict[str, Any]:
    """Writes the tables with DuckDB by a REST catalog on S3, or reads them."""
    package = import_module("duckdb")
    connection = package.connect()
    for name in ("httpfs", "avro", "iceberg"):
        (place,) = Path(import_module(f"duckdb_extension_{name}").__path__[0]).rglob(f"{name}.duckdb_extension")
        connection.execute(f"load '{place}'")
    connection.execute(
        f"create secret s3 (type s3, key_id '{given['key']}', secret '{given['secret']}', endpoint"
        f" '{given['endpoint'].removeprefix('http://')}', url_style 'path', use_ssl false, region 'us-east-1')"
    )
    connection.execute(
        f"create secret ice (type iceberg, client_id '{given['key']}', client_secret '{given['secret']}',"
        f" oauth2_server_uri '{given['catalog']}/v1/oauth/tokens')"
    )
    connection.execute(f"attach 'warehouse' as ice (type iceberg, endpoint '{given['catalog']}', secret ice)")
    connection.execute("set timezone = 'UTC'")
    found: dict[str, Any] = {}
    if what == "write":
        connection.execute("create schema if not exists ice.duck")
    for name, statements in DUCKDB.items():
        try:
            for statement in statements if what == "write" else ():
                connection.execute(statement.replace("TABLE", f"ice.duck.{name}"))
            columns = [each[0] for each in connection.execute(f"describe ice.duck.{name}").fetchall()]
            listed = ", ".join(f'"{each}"::varchar' for each in sorted(columns))
            query = f"select count(*), sum(hash({listed})::hugeint) from ice.duck.{name}"
            rows, values = connection.execute(query).fetchone()
            found[name] = {"rows": rows, "values": str(values)}
        except package.Error as error:  # what this version of it cannot write is no table to be taken over
            found[name] = {"error": " ".join(str(error).split())[:200]}
    return found


if __name__ == "__main__":
    print(json.dumps({"spark": spark, "duckdb": duckdb}[sys.argv[1]](sys.argv[2], json.loads(sys.argv[3]))))
