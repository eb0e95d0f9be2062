"""Lakes in S3 for the write API: with the embedded server's REST catalog, or with AWS Glue as moto serves it.

Their tables are read by pyiceberg with properties that are written down here, and not by the product.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from uuid import uuid4

import stamina
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import RESTError
from pyiceberg.table import Table

from datalake_assets.demo.s3_server import S3Server
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.s3_access import CatalogAccess, S3Access

__all__ = ["SharedCatalog", "glue_server", "ready_rest_catalog"]

_REGION = "us-east-1"


@lru_cache(maxsize=8)
def _loaded(properties: tuple[tuple[str, str], ...]) -> Catalog:
    """One for as long as its properties are the same: Glue's client takes a fifth of a second, and keeps no table."""
    return load_catalog("theirs", **dict(properties))


@dataclass(frozen=True, slots=True)
class SharedCatalog:
    """A catalog that tenants share, and the S3 server that has the files.

    Attributes:
        server: The S3 server, and the REST catalog.
        glue: URL of a server of AWS Glue; empty for the REST catalog.
        namespace: What the lake's namespaces begin with.
        lake: URI of the lake.
        uri: URL of the REST catalog, in place of its own.
    """

    server: S3Server
    glue: str = ""
    namespace: str = field(default_factory=lambda: f"n{uuid4().hex}")
    lake: str = field(default_factory=lambda: f"s3://lake/operations/{uuid4().hex}")
    uri: str = ""

    @property
    def store(self) -> Store:
        """The lake, as the product opens it."""
        s3 = S3Access(
            endpoint=self.server.endpoint,
            region=_REGION,
            access_key=self.server.access_key,
            secret_key=self.server.secret_key,
        )
        credential = f"{self.server.access_key}:{self.server.secret_key}"
        access = CatalogAccess(
            uri=self.uri or self.server.iceberg_endpoint,
            warehouse="s3://warehouse",
            namespace=self.namespace,
            credential=credential,
        )
        if self.glue:
            access = CatalogAccess(uri="glue", namespace=self.namespace, properties=self._glue)
        return open_store(self.lake, s3=s3, catalog=access)

    @property
    def environment(self) -> dict[str, str]:
        """The same as settings, for processes."""
        found = {**self.server.environment(), "DATALAKE_LAKE": self.lake, "DATALAKE_ICEBERG_NAMESPACE": self.namespace}
        if self.glue:
            properties = json.dumps(self._glue)
            return {**found, "DATALAKE_ICEBERG_CATALOG": "glue", "DATALAKE_ICEBERG_PROPERTIES": properties}
        return {
            **found,
            "DATALAKE_ICEBERG_CATALOG": self.uri or self.server.iceberg_endpoint,
            "DATALAKE_ICEBERG_WAREHOUSE": "s3://warehouse",
            "DATALAKE_ICEBERG_CREDENTIAL": f"{self.server.access_key}:{self.server.secret_key}",
        }

    @property
    def _glue(self) -> dict[str, str]:
        return {
            "glue.endpoint": self.glue,
            "glue.region": _REGION,
            "glue.access-key-id": "key",
            "glue.secret-access-key": "secret",
        }

    def opened(self) -> Catalog:
        """The catalog, as any engine opens it."""
        return _loaded(tuple(self.theirs.items()))

    @property
    def theirs(self) -> dict[str, str]:
        """What pyiceberg has to be told to open it."""
        files = {
            "s3.endpoint": self.server.endpoint,
            "s3.region": _REGION,
            "s3.access-key-id": self.server.access_key,
            "s3.secret-access-key": self.server.secret_key,
        }
        if self.glue:
            return {**files, "type": "glue", **self._glue}
        return {
            **files,
            "type": "rest",
            "uri": self.server.iceberg_endpoint,
            "warehouse": "s3://warehouse",
            "credential": f"{self.server.access_key}:{self.server.secret_key}",
            "oauth2-server-uri": f"{self.server.iceberg_endpoint}/v1/oauth/tokens",
        }

    def namespace_of(self, tenant: str = "acme", namespace: str = "sales") -> str:
        """The name that a tenant's namespace has in the catalog."""
        return f"{self.namespace}_{len(tenant)}_{tenant}_{namespace}"

    def table(self, tenant: str = "acme", namespace: str = "sales", table: str = "orders") -> Table:
        """A tenant's table, as any engine loads it."""
        return self.opened().load_table((self.namespace_of(tenant, namespace), table))

    def files(self, table: Table) -> set[str]:
        """Every object below a table's folder."""
        bucket, _, prefix = table.location().removeprefix("s3://").partition("/")
        place = open_store(f"s3://{bucket}", s3=self.store.s3)
        return {f"s3://{bucket}/{each.key}" for each in place.list(prefix)}


def ready_rest_catalog(server: S3Server) -> SharedCatalog:
    """The server's own catalog, once it has its warehouse, which may be a moment later than its buckets."""
    found = SharedCatalog(server)
    for attempt in stamina.retry_context(on=RESTError, attempts=None, wait_initial=0.1, wait_max=0.5, timeout=120):
        with attempt:
            found.opened().create_namespace_if_not_exists("n")
    return found


@contextmanager
def glue_server() -> Iterator[str]:
    """Runs moto; gives its URL. It takes every commit, whatever it was built on: conflicts cannot be shown there."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415  a second

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()
