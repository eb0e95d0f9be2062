"""Where objects lie: a local folder or S3."""

from __future__ import annotations

import os
from functools import cache
from typing import Any
from urllib.parse import unquote, urlsplit

from datalake_assets.errors import ConfigError
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.local import LocalStore
from datalake_assets.lake.store.s3_access import AWS_CONVENTIONS, BESIDE, CatalogAccess, S3Access

__all__ = ["PortableStore", "open_store"]


def open_store(uri: str, *, s3: S3Access = AWS_CONVENTIONS, catalog: CatalogAccess = BESIDE) -> Store:
    """The store of a lake; talks to nobody yet.

    Args:
        uri: A local folder (a path, or `file://`), or `s3://bucket/prefix`.
        s3: How S3 is reached, by this store and by those that are opened beside it.
        catalog: Which catalog knows the lake's Iceberg tables.
    """
    if "://" not in uri:
        return _local(uri, s3, catalog)
    parts = urlsplit(uri)
    if parts.username or parts.password:
        raise ConfigError(
            "a lake's URI must not carry credentials; give them by the AWS conventions (environment, profile)"
        )
    if parts.scheme == "file" and parts.netloc in {"", "localhost"}:
        return _local(unquote(parts.path), s3, catalog)
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
        raise ConfigError(f"{uri!r} cannot be a lake: give a local folder, or s3://bucket/prefix")
    from datalake_assets.lake.store.s3 import S3Store  # noqa: PLC0415  boto3 takes half a second to import

    return S3Store(parts.netloc, parts.path.strip("/"), s3=s3, catalog=catalog)


def _local(folder: str, s3: S3Access, catalog: CatalogAccess) -> Store:
    if not folder:
        raise ConfigError("'' cannot be a lake: give a local folder, or s3://bucket/prefix")
    return LocalStore(folder, s3=s3, catalog=catalog)


class PortableStore:
    """A store that goes to other processes as its address; there it is opened again, once in each.

    No credentials go along: whoever opens it takes its own by the AWS conventions. Endpoint and region go, though this
    process may have them from its environment.

    Args:
        store: The store.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def __reduce__(self) -> tuple[Any, ...]:
        """Its address.

        Raises:
            ConfigError: The store is reached by credentials that this process alone was given.
        """
        s3 = self.store.s3
        if "://" not in self.store.uri:
            return _reopened, (self.store.uri, None, None, None)
        if s3.access_key:
            raise ConfigError(
                f"{self.store.uri} is reached by credentials that only this process was given, and no worker gets them:"
                " give workers and this process theirs by the AWS conventions alone, or use the engine 'local'"
            )
        endpoint, region = (os.environ.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_REGION"))
        endpoint = s3.endpoint or endpoint or os.environ.get("AWS_ENDPOINT_URL")
        region = s3.region or region or os.environ.get("AWS_DEFAULT_REGION")
        return _reopened, (self.store.uri, endpoint, region, s3.profile)


@cache
def _reopened(uri: str, endpoint: str | None, region: str | None, profile: str | None) -> PortableStore:
    return PortableStore(open_store(uri, s3=S3Access(endpoint=endpoint, region=region, profile=profile)))
