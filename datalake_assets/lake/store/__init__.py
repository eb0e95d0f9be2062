"""Where objects lie: a local folder or S3."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from datalake_assets.errors import ConfigError
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.local import LocalStore
from datalake_assets.lake.store.s3_access import AWS_CONVENTIONS, BESIDE, CatalogAccess, S3Access

__all__ = ["open_store"]


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
