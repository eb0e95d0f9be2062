"""Where adopted folders lie: what can be adopted, the store beside it, and which addresses overlap.

The store of an adopted folder is rooted at its *parent*, so that staged files lie beside the folder, on its device, and
never in it.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from datalake_assets.config import Feed, FolderSource
from datalake_assets.errors import ConfigError
from datalake_assets.lake.store import Store, check_key, open_store

__all__ = ["FolderAddress", "address_of", "folder_store", "overlap", "parse_address"]

#: How Spark and Hadoop write what everybody else calls s3.
_S3 = {"s3", "s3a", "s3n"}
#: The stores beside a lake's, by the URI of their root; they live as long as the lake's.
_beside: weakref.WeakKeyDictionary[Store, dict[str, Store]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class FolderAddress:
    """An adopted folder.

    Attributes:
        root: URI of its parent: an absolute path without links, or ``s3://bucket/prefix``.
        name: Its own name.
    """

    root: str
    name: str

    @property
    def uri(self) -> str:
        """The folder's own URI."""
        return f"{self.root.rstrip('/')}/{self.name}"


def parse_address(uri: str) -> FolderAddress:
    """The address that a person wrote: a path (relative ones too), ``file://…``, ``s3://…`` or ``s3a://…``.

    Raises:
        ConfigError: It cannot be adopted: it has no parent to stage beside it, or is no address at all.
    """
    if "://" not in uri:
        return _local(uri, uri)
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"}:
        return _local(unquote(parts.path), uri)
    if parts.username or parts.password:
        raise ConfigError("a folder's URI must not carry credentials; give them by the AWS conventions")
    if parts.scheme not in _S3 or not parts.netloc:
        raise ConfigError(f"{uri!r} cannot be adopted: give a local folder, or s3://bucket/prefix")
    # a prefix may contain '?' and '#': S3 has no queries
    key = uri.partition("://")[2].partition("/")[2].strip("/")
    if not key:
        raise ConfigError(f"{uri!r} cannot be adopted: a bucket has no place beside it; give a prefix in it")
    above, _, name = check_key(key).rpartition("/")
    return FolderAddress(f"s3://{parts.netloc}/{above}".rstrip("/"), name)


def _local(path: str, written: str) -> FolderAddress:
    if not path.strip():
        raise ConfigError("'' cannot be adopted: give a local folder, or s3://bucket/prefix")
    folder = Path(path).expanduser().resolve()
    if folder == folder.parent:
        raise ConfigError(f"{written!r} cannot be adopted: it has no place beside it; give a folder in it")
    check_key(folder.name)
    return FolderAddress(str(folder.parent), folder.name)


def address_of(feed: Feed) -> FolderAddress:
    """The address of an adopted folder's feed.

    Raises:
        ConfigError: The feed is of another kind.
    """
    if not isinstance(feed.source, FolderSource):
        raise ConfigError(f"feed {feed.name!r} is a {feed.kind}, not a folder that others write")
    root, _, name = feed.source.uri.rpartition("/")
    return FolderAddress(root or "/", name)


def folder_store(lake: Store, root: str) -> Store:
    """The store at a root beside a lake, reached as the lake is; opened once per lake."""
    known = _beside.setdefault(lake, {})
    if root not in known:
        known[root] = open_store(root, s3_endpoint=lake.s3_endpoint)
    return known[root]


def overlap(one: str, other: str) -> bool:
    """Whether one of two URIs is the other, or lies in it. Local paths are compared with their links resolved."""
    first, second = f"{_plain(one)}/", f"{_plain(other)}/"
    return first.startswith(second) or second.startswith(first)


def _plain(uri: str) -> str:
    return uri.rstrip("/") if "://" in uri else str(Path(uri).resolve()).rstrip("/")
