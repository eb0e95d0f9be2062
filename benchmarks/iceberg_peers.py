"""Compactions of Iceberg tables by others, in an interpreter that has them; standard library and these alone.

``python -m benchmarks.iceberg_peers spark FOLDER`` or ``… rust PROPERTIES`` (JSON). See `benchmarks.iceberg`.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.measuring import Stopwatch, Used, print_used

__all__ = ["SQLITE_JAR", "missing"]

#: Of Debian's package libxerial-sqlite-jdbc-java.
SQLITE_JAR = Path("/usr/share/java/sqlite-jdbc.jar")
_MIB = 1 << 20
TARGET_BYTES = 128 * _MIB


def missing(name: str) -> str:
    """What a peer lacks here; empty if nothing. To be asked in the interpreter that has the peers."""
    if name == "rust":
        return "" if find_spec("iceberg_compaction") else "package iceberg-compaction"
    if not (find_spec("pyspark") and find_spec("snowpark_connect_deps_iceberg")):
        return "packages pyspark and snowpark-connect-deps-iceberg"
    return "" if SQLITE_JAR.exists() else f"{SQLITE_JAR} (Debian: libxerial-sqlite-jdbc-java)"


def spark(folder: Path) -> Used:
    """Spark's ``rewrite_data_files``, on the table of a SQLite catalog; what its JVM used, its start shown apart."""
    package = import_module("snowpark_connect_deps_iceberg")
    (jar,) = Path(package.__path__[0]).glob("jars/iceberg-spark-runtime-3.5_2.12-*.jar")
    settings = {
        "spark.jars": f"{jar},{SQLITE_JAR}",
        "spark.driver.memory": "1500m",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
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
    session.sparkContext.setLogLevel("ERROR")
    java = session.sparkContext._gateway.proc.pid  # noqa: SLF001  nothing else says which process it is
    session.sql("select 1").collect()
    begun, watch = _cpu_s(java), Stopwatch()
    options = f"map('target-file-size-bytes', '{TARGET_BYTES}', 'rewrite-all', 'true')"
    session.sql(f"call lake.system.rewrite_data_files(table => 'n.t', options => {options})").collect()
    used = watch.stop()
    ended, peak_mb = _cpu_s(java), _peak_mb(java)
    session.stop()
    own = used.work_cpu_s
    return replace(used, cpu_s=begun + own + ended - begun, startup_cpu_s=begun, peak_rss_mb=peak_mb)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def rust(access: dict[str, str]) -> Used:
    """The Rust library iceberg-compaction, by a REST catalog on S3."""
    package: Any = import_module("iceberg_compaction")
    properties = {
        "credential": f"{access['key']}:{access['secret']}",
        "s3.endpoint": access["endpoint"],
        "s3.access-key-id": access["key"],
        "s3.secret-access-key": access["secret"],
        "s3.region": access["region"],
        "s3.path-style-access": "true",
    }
    watch = Stopwatch()
    catalog = package.RestCatalog("lake", access["catalog"], "s3://warehouse", properties)
    config = package.CompactionConfig(strategy="full", target_file_size_bytes=TARGET_BYTES)
    package.Compaction(catalog, "n.t", config).run()
    return watch.stop()


def main(what: str, argument: str) -> None:
    """In the process that is measured."""
    if what == "missing":
        print(json.dumps(missing(argument)))
    else:
        print_used(spark(Path(argument)) if what == "spark" else rust(json.loads(argument)))


if __name__ == "__main__":
    main(*sys.argv[1:])
