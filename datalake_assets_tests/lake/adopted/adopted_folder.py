"""A folder of Parquet files that others write, on any store, for tests."""

from __future__ import annotations

import datetime as dt
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.errors import DatalakeError
from datalake_assets.lake.adopted.adoption import Adoption
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import LakeTable

__all__ = ["NOON", "AdoptedFolder", "ids", "kinds", "parquet_bytes", "refused", "rows"]

NOON = dt.datetime(2025, 1, 1, 12, tzinfo=dt.UTC)


def parquet_bytes(columns: dict[str, Sequence[object] | pa.Array], **options: object) -> bytes:
    """A Parquet file."""
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, **options)
    return file.getvalue()


@dataclass(frozen=True)
class AdoptedFolder:
    """The other writer.

    Attributes:
        store: Of the folder's parent.
        name: The folder's name.
    """

    store: Store
    name: str

    @property
    def uri(self) -> str:
        return f"{self.store.uri}/{self.name}"

    def write(self, path: str, ids: Sequence[object], **more: Sequence[object]) -> None:
        self.put(path, parquet_bytes({"id": ids, **more}))

    def put(self, path: str, body: bytes) -> None:
        self.store.put(f"{self.name}/{path}", body)

    def delete(self, *paths: str) -> None:
        self.store.delete(f"{self.name}/{path}" for path in paths)

    def files(self) -> dict[str, str]:
        """What is there: ETags by path."""
        return {info.key.removeprefix(f"{self.name}/"): info.etag for info in self.store.list(self.name)}


def rows(table: LakeTable, **options: object) -> list[dict[str, object]]:
    """Its rows, in an order of their own."""
    found = table.scan(**options).read_all().to_pylist()
    return sorted(found, key=lambda row: str(sorted((name, str(value)) for name, value in row.items())))


def ids(table: LakeTable, **options: object) -> list[object]:
    """The column ``id`` of its rows, in order."""
    return sorted(table.scan(columns=["id"], **options).read_all()["id"].to_pylist())


def kinds(store: Store, adoption: Adoption, key: str) -> list[tuple[str, int, int]]:
    history = FeedFolder(store, adoption.feed).log(key).load().manifest.history
    return [(commit.kind, commit.files_added, commit.files_removed) for commit in history]


def refused(call: Callable[[], object]) -> str:
    """The line that this is refused with."""
    with pytest.raises(DatalakeError) as caught:
        call()
    return str(caught.value)
