"""Where objects lie: a local folder or S3."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from datalake_assets.errors import ConfigError
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.local import LocalStore

__all__ = ["open_store"]


def open_store(uri: str, *, s3_endpoint: str | None = None) -> Store:
    """The store of a lake; talks to nobody yet.

    Args:
        uri: A local folder (a path, or `file://`), or `s3://bucket/prefix`.
        s3_endpoint: An S3-compatible server's URL; None = what the AWS conventions say. Credentials and region come
            from the AWS conventions alone (environment, profile, instance).
    """
    if "://" not in uri:
        return _local(uri, s3_endpoint)
    parts = urlsplit(uri)
    if parts.username or parts.password:
        raise ConfigError(
            "a lake's URI must not carry credentials; give them by the AWS conventions (environment, profile)"
        )
    if parts.scheme == "file" and parts.netloc in {"", "localhost"}:
        return _local(unquote(parts.path), s3_endpoint)
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
        raise ConfigError(f"{uri!r} cannot be a lake: give a local folder, or s3://bucket/prefix")
    from datalake_assets.lake.store.s3 import S3Store  # noqa: PLC0415  boto3 takes half a second to import

    return S3Store(parts.netloc, parts.path.strip("/"), endpoint=s3_endpoint)


def _local(folder: str, s3_endpoint: str | None) -> Store:
    if not folder:
        raise ConfigError("'' cannot be a lake: give a local folder, or s3://bucket/prefix")
    return LocalStore(folder, s3_endpoint=s3_endpoint)
