"""One local Spark for the whole session: two threads, no UI, loopback only."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["conf", "missing_java", "quiet", "running_spark"]

# of a JVM that lives for seconds: its better compiler would take the other core meanwhile, and checking Spark's own
# classes takes a sixth of its time.
_FRUGAL = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:+UnlockDiagnosticVMOptions -XX:-BytecodeVerificationRemote"
#: Set by ``.ci/run``; most CI systems set CI.
NEEDED = ("CI", "TESTS_NEED_JAVA")


def missing_java() -> str:
    """Why Spark cannot run here; empty if it can.

    Raises:
        RuntimeError: It cannot, where it must.
    """
    java = Path(os.environ["JAVA_HOME"], "bin", "java") if os.environ.get("JAVA_HOME") else shutil.which("java")
    if java and Path(java).exists():
        return ""
    reason = "Spark needs Java 17 or later, and no `java` was found (Debian: apt-get install default-jre-headless)"
    if any(os.environ.get(name) for name in NEEDED):
        raise RuntimeError(reason)
    return reason


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Takes pyspark's word about pandas 3 as read: no pandas is involved here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "PySpark does not yet fully support pandas", FutureWarning)
        yield


@contextlib.contextmanager
def running_spark(folder: Path) -> Iterator[SparkSession]:
    """Starts Spark, and ends its JVM.

    Args:
        folder: For what Spark leaves behind.
    """
    environment = {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LOCAL_DIRS": str(folder)}
    with mock.patch.dict(os.environ, environment), quiet():
        from pyspark.sql import SparkSession  # noqa: PLC0415  # half a second, and not everybody needs it

        builder = SparkSession.builder.master("local[2]").appName("interop")
        for name, value in _settings(folder).items():
            builder = builder.config(name, value)
        spark = builder.getOrCreate()
    gateway = spark.sparkContext._gateway  # left alone, its process ends at exit, with a warning
    try:
        yield spark
    finally:
        spark.stop()
        gateway.shutdown()
        gateway.proc.stdin.close()
        gateway.proc.wait(timeout=120)


@contextlib.contextmanager
def conf(spark: SparkSession, **settings: str) -> Iterator[None]:
    """Sets ``spark.sql.parquet.*`` for a while."""
    names = {f"spark.sql.parquet.{name}": value for name, value in settings.items()}
    before = {name: spark.conf.get(name) for name in names}
    for name, value in names.items():
        spark.conf.set(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            spark.conf.set(name, value)


def _settings(folder: Path) -> dict[str, str]:
    folders = f"-Djava.io.tmpdir={folder} -Dderby.system.home={folder}"
    java = f"{_FRUGAL} -Djava.net.preferIPv4Stack=true {folders}"
    return {
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.extraJavaOptions": java,
        "spark.driver.host": "127.0.0.1",
        "spark.driver.memory": "512m",
        # a Hive metastore in a Derby database, made when it is first asked for
        "spark.hadoop.javax.jdo.option.ConnectionURL": f"jdbc:derby:;databaseName={folder}/metastore;create=true",
        "spark.log.level": "OFF",
        # of a query that runs once: what is not generated with the whole stage need not be compiled, a tenth of its CPU
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
        "spark.sql.catalogImplementation": "hive",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "1",
        "spark.sql.warehouse.dir": str(folder / "warehouse"),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
