"""What the footers of a partition's files say: how many rows there are, and whether the columns are the feed's."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.dataset as ds

from datalake_assets.core.health import Drift, PartitionFooters
from datalake_assets.errors import SnapshotExpired
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.scan import exact_dataset

__all__ = ["partition_footers"]

#: What the paths of streams and tables say, and their files don't.
_PATH_COLUMNS = {"year", "month", "day", "hour", "version"}


def partition_footers(folder: FeedFolder, key: str) -> PartitionFooters:
    """Opens every file of a partition and compares its columns with the feed's; one that cannot be read is a drift.

    Raises:
        SnapshotExpired: A file went away meanwhile: look again.
    """
    dataset = exact_dataset(folder, partitions=[key])
    rows, drifts = 0, []
    for fragment in dataset.get_fragments():
        try:
            fragment.ensure_complete_metadata()
            drift = _drift(folder, fragment, dataset.schema)
            rows += fragment.metadata.num_rows
        except FileNotFoundError as error:
            raise SnapshotExpired(folder.feed.path, "a file was compacted or replaced during the read") from error
        except (OSError, pa.ArrowException) as error:
            drift = f"cannot be read: {' '.join(str(error).split())}"
        if drift:
            drifts.append(Drift(fragment.path.rpartition("/")[2], drift))
    columns = sum(name not in _PATH_COLUMNS or folder.is_foreign for name in dataset.schema.names)
    return PartitionFooters(key, len(dataset.files), rows, columns, tuple(drifts))


def _drift(folder: FeedFolder, fragment: ds.ParquetFileFragment, contract: pa.Schema) -> str:
    """How a file's columns differ from the contract; an evolving feed's older files lack the newer columns."""
    found = fragment.physical_schema
    extra = [name for name in found.names if name not in contract.names]
    other = [
        f"{name!r} is {found.field(name).type}, not {contract.field(name).type}"
        for name in found.names
        if name in contract.names and found.field(name).type != contract.field(name).type
    ]
    missing = [name for name in contract.names if name not in found.names and name not in _PATH_COLUMNS]
    parts = [f"has a column {name!r} that the feed hasn't" for name in extra]
    parts += [f"has no column {name!r}" for name in missing if folder.feed.schema_policy == "freeze"]
    return "; ".join([*parts, *other])
