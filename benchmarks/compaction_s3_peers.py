"""What else rewrites many Parquet files of a bucket as few: each peer by its own S3 client, as its documentation shows.

``python -m benchmarks.compaction_s3_peers PEER INPUTS OUTPUT``, two prefixes as URIs; the environment says where the
server is. ``check OUTPUT ROWS`` says whether all rows are there, once. Nothing of this package is imported. A peer only
writes; delta-rs commits to its log, too. DuckDB's own extension for S3 is not to be had everywhere, so DuckDB reads and
writes through obstore's file system.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from benchmarks.compaction_peers import TARGET_FILE_BYTES
from benchmarks.measuring import Stopwatch, Used, print_used

__all__ = ["PEERS"]


def _options() -> dict[str, str]:
    """As the Rust library that Polars and delta-rs share takes them."""
    return {
        "aws_access_key_id": os.environ["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"],
        "aws_region": os.environ.get("AWS_REGION", "us-east-1"),
        "aws_endpoint_url": os.environ["DATALAKE_S3_ENDPOINT"],
        "aws_allow_http": "true",
        "aws_virtual_hosted_style_request": "false",
    }


def polars(inputs: str, output: str) -> Used:
    """Polars' streaming sink, into one object."""
    polars = import_module("polars")
    watch = Stopwatch()
    rows = polars.scan_parquet(f"{inputs}/*.parquet", storage_options=_options(), hive_partitioning=False)
    rows.sink_parquet(f"{output}/data.parquet", compression="snappy", storage_options=_options())
    return watch.stop()


def delta_rs(inputs: str, _: str) -> Used:
    """delta-rs' OPTIMIZE of a table that has the inputs already, where they lie."""
    deltalake = import_module("deltalake")
    deltalake.convert_to_deltalake(inputs, storage_options=_options())
    properties = deltalake.WriterProperties(compression="SNAPPY")
    delta = deltalake.DeltaTable(inputs, storage_options=_options())
    watch = Stopwatch()
    delta.optimize.compact(target_size=TARGET_FILE_BYTES, writer_properties=properties)
    return watch.stop()


def duckdb(inputs: str, output: str) -> Used:
    """DuckDB's COPY through obstore's file system, which it gets the names of the files for."""
    connection = import_module("duckdb").connect()
    file_system: Any = import_module("obstore.fsspec").FsspecStore(
        "s3",
        config={name.removeprefix("aws_"): value for name, value in _options().items() if "allow_http" not in name},
        client_options={"allow_http": True},
    )
    connection.register_filesystem(file_system)
    watch = Stopwatch()
    names = sorted(f"s3://{name}" for name in file_system.ls(inputs, detail=False) if name.endswith(".parquet"))
    listed = ", ".join(f"'{name}'" for name in names)
    connection.execute(
        f"COPY (FROM read_parquet([{listed}], hive_partitioning = false)) TO '{output}/data.parquet' "
        "(FORMAT parquet, COMPRESSION snappy)"
    )
    return watch.stop()


def pyarrow(inputs: str, output: str) -> Used:
    """A scan of pyarrow's dataset, written as one."""
    dataset, store = import_module("pyarrow.dataset"), _arrow_store()
    watch = Stopwatch()
    found = dataset.dataset(inputs.removeprefix("s3://"), filesystem=store, format="parquet")
    dataset.write_dataset(
        found.scanner(), output.removeprefix("s3://"), filesystem=store, format="parquet", create_dir=False
    )
    return watch.stop()


def ids_are_right(output: str, rows: int) -> bool:
    """Whether each id from 0 on is there once, in files below a prefix or in those of a Delta table, by pyarrow."""
    np, dataset = import_module("numpy"), import_module("pyarrow.dataset")
    files: Any = output
    store = _arrow_store()
    if output.startswith("delta:"):
        uri = output.removeprefix("delta:")
        found = import_module("deltalake").DeltaTable(uri, storage_options=_options()).file_uris()
        files = [name.removeprefix("s3://") for name in found]
    else:
        files = output.removeprefix("s3://")
    ids = dataset.dataset(files, filesystem=store, format="parquet").to_table(columns=["id"])["id"].to_numpy()
    return bool(np.array_equal(np.sort(ids), np.arange(rows)))


def _arrow_store() -> Any:
    options = _options()
    scheme, _, host = options["aws_endpoint_url"].partition("://")
    return import_module("pyarrow.fs").S3FileSystem(
        access_key=options["aws_access_key_id"],
        secret_key=options["aws_secret_access_key"],
        region=options["aws_region"],
        endpoint_override=host,
        scheme=scheme,
    )


#: Each peer by the module that it comes in.
PEERS: dict[str, tuple[str, Callable[[str, str], Used]]] = {
    "DuckDB COPY": ("duckdb", duckdb),
    "Polars sink": ("polars", polars),
    "delta-rs": ("deltalake", delta_rs),
    "pyarrow": ("pyarrow", pyarrow),
}


if __name__ == "__main__":
    if sys.argv[1] == "check":
        print(json.dumps(ids_are_right(sys.argv[2], int(sys.argv[3]))))
    else:
        print_used(PEERS[sys.argv[1]][1](sys.argv[2], sys.argv[3]))
