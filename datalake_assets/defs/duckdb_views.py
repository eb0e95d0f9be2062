"""DuckDB over the lake, for assets of anybody's project: the resource that Dagster's users know, a view per feed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dagster_duckdb import DuckDBResource

from datalake_assets.defs.resources import LakeResource
from datalake_assets.lake.sql_views import show

__all__ = ["LakeDuckDBResource"]


class LakeDuckDBResource(DuckDBResource):
    """A DuckDB database in whose connections each feed of a lake is a view of its name.

    A view holds the rows that are committed when the connection is opened, exactly; of a table, those of its current
    version. It is there in this connection alone: in a database file nothing of it is kept. Unlike ``datalake sql`` the
    connection may do all that DuckDB can, since its queries are the project's own.

    Attributes:
        lake: The lake.
        database: A file, or the default, ``:memory:``.
    """

    database: str = ":memory:"
    lake: LakeResource

    @contextmanager
    def get_connection(self) -> Iterator[Any]:
        """A connection with a view of each active feed that has data.

        Raises:
            LakeError: The lake cannot be read.
        """
        lake = self.lake.open()
        with super().get_connection() as connection:
            for feed in lake.registry.list().feeds:
                dataset = lake.table(feed).snapshot().dataset()
                if dataset.schema.names:
                    show(connection, feed.name, dataset, is_temporary=True)
            yield connection
