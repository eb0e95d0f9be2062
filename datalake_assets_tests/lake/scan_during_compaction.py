"""Exact reads of a partition that others append to and compact the whole time.

``python -m datalake_assets_tests.lake.scan_during_compaction --reads 10000 --store local|s3`` prints the figures of a
long run. An append is some rows whose offsets follow those before, and moves the position; so what a read has to see
follows from the positions before and after it: rows 0, 1, …, each once, up to one of the positions in between.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa

from datalake_assets.demo.s3_server import S3Server
from datalake_assets.errors import SnapshotExpired
from datalake_assets_tests.crash.child import Forker
from datalake_assets_tests.crash.compacted_lake import WAYS, CompactedLake, Way
from datalake_assets_tests.crash.small_files import APPENDED, Partition, require

__all__ = ["Reading"]

#: Reads of one lake, and its appends, at most; then there is a new one, compacted in another way.
LIFE, APPENDS = 250, 100


class Reading:
    """Reads beside an appender and a compactor.

    Args:
        lakes: Below this URI, lakes are made.
        forker: Runs the two.
        endpoint: Of the S3 server.
        seed: Decides which reads are slow.

    Attributes:
        happened: What there was, by name.
    """

    def __init__(self, lakes: str, forker: Forker, *, endpoint: str | None = None, seed: int = 0) -> None:
        self._lakes, self._forker, self._endpoint, self._rng = lakes, forker, endpoint, random.Random(seed)
        self._folder = tempfile.TemporaryDirectory()
        self._number = 0
        self.happened: Counter[str] = Counter()

    def close(self) -> None:
        """Forgets what it learned; the lakes stay."""
        self._folder.cleanup()

    def read(self, reads: int, *, life: int = LIFE) -> None:
        """That many reads."""
        enough = self.happened["reads"] + reads
        while left := enough - self.happened["reads"]:
            self._live(WAYS[self._number % len(WAYS)], min(life, left))
            print(f"{self._number}: {self.happened['reads']:,} reads", flush=True)

    def _live(self, way: Way, reads: int) -> None:
        self._number += 1
        name = f"read{self._number}"
        lake = CompactedLake(f"{self._lakes}/{name}", self._endpoint, Path(self._folder.name) / name)
        require(lake.append(self._forker, limit=5, pause_s=0).end() == 0, "appends failed")
        processes = [lake.append(self._forker), lake.compact(self._forker, way, again=True)]
        try:
            for number in range(reads):
                self._read(lake.partition, slow=self._rng.random() < 0.25)
                if number % 25 == 0:
                    lake.check()
                if lake.acknowledged() >= APPENDS * APPENDED:
                    break
        finally:
            lake.stop()
            codes = [process.end() for process in processes]
        require(codes == [0, 0], f"appends and compactions ended with {codes}; a traceback is above")
        lake.partition.check_settled()
        done = lake.kernels()
        self.happened["compactions"] += done.total() - done[""]
        self.happened["appends"] += lake.partition.position() // APPENDED

    def _read(self, partition: Partition, *, slow: bool) -> None:
        before = partition.position()
        ids = self._ids(partition, slow=slow)
        after = partition.position()
        count = len(ids)
        require(np.array_equal(np.sort(ids), np.arange(count)), f"rows lost or doubled among {count}")
        require(before <= count <= after, f"{count} rows, but the position went from {before} to {after}")
        require(count % APPENDED == 0, f"{count} rows are no whole number of appends")
        self.happened["reads"] += 1
        self.happened["reads at one position"] += before == after

    def _ids(self, partition: Partition, *, slow: bool) -> np.ndarray:
        while True:
            reader = partition.table.scan(columns=["id"], partitions=[partition.key])
            batches: list[pa.RecordBatch] = []
            try:
                for batch in reader:
                    batches.append(batch)
                    if slow and len(batches) == 1:
                        time.sleep(0.02)  # so that a file that is not open yet may go
            except SnapshotExpired:
                require(batches, "a read expired before its first batch")
                self.happened["reads that expired"] += 1
                continue
            self.happened["files read"] += len(batches)
            return pa.Table.from_batches(batches, reader.schema)["id"].to_numpy()


def main() -> None:
    """A long run."""
    parser = argparse.ArgumentParser(description="Reads a partition that others append to and compact.")
    parser.add_argument("--reads", type=int, default=10_000)
    parser.add_argument("--store", choices=["local", "s3"], default="local")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        lakes, endpoint = f"{folder}/lakes", None
        Path(lakes).mkdir()
        if chosen.store == "s3":
            server = stack.enter_context(S3Server(Path(folder) / "s3", grace_s=1))
            lakes, endpoint = f"s3://{server.bucket}/reads", server.endpoint
            os.environ.update(server.environment())
        forker = stack.enter_context(Forker(dict(os.environ)))
        reading = Reading(lakes, forker, endpoint=endpoint, seed=chosen.seed)
        stack.callback(reading.close)
        reading.read(chosen.reads)
    print(f"{chosen.reads:,} reads on {chosen.store} in {time.monotonic() - began:.0f} s: each exact")
    print(", ".join(f"{count:,} {name}" for name, count in reading.happened.items()))


if __name__ == "__main__":
    main()
