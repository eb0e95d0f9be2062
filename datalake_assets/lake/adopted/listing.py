"""What is in an adopted folder: one listing, the footers of the files that are not known yet, and their one schema.

`datalake_assets.parquet.schemas` says which schemas become one. Where some do not, most of the files with rows decide:
the others stay in their manifests, are left out of scans, are not compacted, and are named.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
import pyarrow as pa

from datalake_assets.core.facts import Problem
from datalake_assets.core.files import DataFile, FileKind, file_kind
from datalake_assets.core.partitions import hive_pairs, partition_key
from datalake_assets.core.schema import schema_to_json, spelled
from datalake_assets.core.wording import name_text
from datalake_assets.errors import ConfigError
from datalake_assets.lake.adopted.marks import refuse_path
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store.base import ObjectInfo, check_key
from datalake_assets.parquet.adopted_footer import AdoptedFooter
from datalake_assets.parquet.schemas import Incompatible, unify_schemas, without_views

__all__ = ["FolderSchema", "Listing", "fold", "list_folder"]

#: S3 limit: bytes of a key (AWS, naming objects).
KEY_MAX_BYTES = 1024
#: Linux's PATH_MAX is 4096, and names of temporary files need some of it.
PATH_MAX_BYTES = 4000
#: ``compacted_20250115_120000_0123456789abcdef.parquet``
OUR_NAME_BYTES = 50
#: Names of our own control objects: no folder of the same name can have a manifest beside them.
_OURS = {"manifest.json", "feed.json", "owner.json"}


@dataclass(frozen=True, slots=True)
class Listing:
    """What is there.

    Attributes:
        partitions: Files that are, or may be, data: by partition key, then by name.
        other_files: Number of files that are no data files.
        problems: Data that cannot be named in a manifest.
        links: Links, which are neither followed nor deleted: what they point to is elsewhere, or here a second time.
    """

    partitions: Mapping[str, Mapping[str, ObjectInfo]]
    other_files: int
    problems: tuple[Problem, ...]
    links: tuple[Problem, ...]


#: Files that are packed together.
PACKED = 1024


class _Pack(msgspec.Struct, frozen=True, array_like=True):
    """Files of one folder, column by column."""

    folder: str
    names: list[str]
    sizes: list[int]
    etags: list[str]
    times: list[datetime]


_packs = msgspec.msgpack.Decoder(_Pack)


class ListedFiles(Mapping[str, Mapping[str, ObjectInfo]]):
    """Files by partition key and name, in few bytes: a partition is unpacked each time that it is asked for.

    Only for files whose names are Unicode.
    """

    def __init__(self) -> None:
        self._packs: dict[str, list[bytes]] = {}
        self._key, self._folder, self._pending = "", "", list[tuple[str, int, str, datetime]]()

    def add(self, key: str, folder: str, name: str, info: ObjectInfo) -> None:
        """Adds a file that is no link; those of one folder had better come one after another."""
        if folder != self._folder or len(self._pending) >= PACKED:
            self.pack()
            self._key, self._folder = key, folder
        self._pending.append((name, info.size_bytes, info.etag, info.modified_at))

    def pack(self) -> None:
        """To be called once after the last file."""
        if self._pending:
            columns = (list(column) for column in zip(*self._pending, strict=True))
            self._packs.setdefault(self._key, []).append(msgspec.msgpack.encode([self._folder, *columns]))
            self._pending = []

    def __getitem__(self, key: str) -> Mapping[str, ObjectInfo]:
        found = {}
        for pack in map(_packs.decode, self._packs[key]):
            for name, size, etag, time in zip(pack.names, pack.sizes, pack.etags, pack.times, strict=True):
                found[name] = ObjectInfo(f"{pack.folder}{name}", size, etag, time)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._packs)

    def __len__(self) -> int:
        return len(self._packs)


def list_folder(folder: FeedFolder, only: str | None = None) -> Listing:
    """Lists an adopted folder.

    Args:
        folder: The feed.
        only: The one partition that is wanted; None for all.

    Raises:
        ConfigError: It is a table of a format with a log of its own.
    """
    root, uri, other_files = folder.data_root, _uri(folder), 0
    partitions, problems, links = ListedFiles(), list[Problem](), list[Problem]()
    folders: dict[str, tuple[str, str | None]] = {}
    for info in folder.data_store.list(root if only is None else folder.data_folder(only), links=True):
        path = info.key.removeprefix(f"{root}/")
        refuse_path(uri, path)
        if file_kind(path, info.size_bytes) is FileKind.OTHER:
            other_files += 1
            continue
        above, _, name = path.rpartition("/")
        if above not in folders:
            folders[above] = partition_key(folder.feed, above) or "", _wrong_folder(folder, above)
        key, wrong = folders[above]
        if only not in {None, key}:
            continue
        wrong = _wrong_name(name) or wrong
        if info.is_link:
            links.append(_problem(key, path, "it is a link, which is neither followed nor deleted"))
        elif wrong:
            problems.append(_problem(key, path, wrong))
        else:
            partitions.add(key, info.key.removesuffix(name), name, info)
    partitions.pack()
    return Listing(partitions, other_files, tuple(problems), tuple(links))


def _problem(key: str, path: str, reason: str) -> Problem:
    return Problem(name_text(key), name_text(path), reason)


def _wrong_folder(folder: FeedFolder, path: str) -> str | None:
    """Why a partition of this path can have no manifest, or no file of ours."""
    if path and (wrong := _wrong_name(path)):
        return wrong
    if _OURS & set(path.split("/")):
        return "a folder above it has a name that manifests need for themselves"
    manifest, ours = f"{folder.control}/{path}/manifest.json", f"{folder.data_root}/{path}/{'x' * OUR_NAME_BYTES}"
    for store, key in ((folder.store, manifest), (folder.data_store, ours)):
        full, most = f"{store.path('')}/{key}", PATH_MAX_BYTES
        if store.uri.startswith("s3://"):
            full, most = full.partition("/")[2], KEY_MAX_BYTES
        if len(full.encode(errors="surrogateescape")) > most:
            return "its path is too long for a manifest, or for a merged file beside it"
    return None


def _wrong_name(path: str) -> str | None:
    try:
        check_key(path)
    except ConfigError:
        return "its name is not UTF-8, or has control characters or a backslash"
    return None


def _uri(folder: FeedFolder) -> str:
    return f"{folder.data_store.uri.rstrip('/')}/{folder.data_root}"


_LONG_AGO, _FAR_AHEAD = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


#: A schema as text, and which of its columns the file's own path gives.
_KindKey = tuple[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class FolderSchema:
    """What `fold` found.

    Attributes:
        schema: The columns of all files that fit, without those that a file's own path gives; None without any file.
        reasons: Why the files of a kind are left out.
    """

    schema: pa.Schema | None
    reasons: Mapping[_KindKey, str]

    def reason(self, path: str, schema: pa.Schema) -> str:
        """Why scans leave out a file of a partition; empty if they don't."""
        return self.reasons.get(_kind_key(path, schema), "") if self.reasons else ""


@dataclass(slots=True)
class _Kind:
    """The files of one schema."""

    schema: pa.Schema
    oldest: datetime
    files: int = 0
    files_with_rows: int = 0

    def add(self, file: DataFile) -> None:
        self.files += 1
        self.files_with_rows += file.rows > 0
        self.oldest = min(self.oldest, file.written_at or _LONG_AGO)


def fold(known: pa.Schema | None, found: Iterable[tuple[str, AdoptedFooter]]) -> FolderSchema:
    """The schema of a folder, with the files that were found now.

    A column that a file's own path gives is ignored in that file; elsewhere it is a column like any other.

    Args:
        known: The schema so far: files that came before have the right of way.
        found: The new files, each with its partition's path.
    """
    kinds: dict[tuple[int, str], _Kind] = {}  # schemas are few objects, and taking them for texts takes long
    keys: dict[tuple[int, str], _KindKey] = {}
    by_key: dict[_KindKey, _Kind] = {}
    for path, each in found:
        quick = id(each.schema), path
        if quick not in kinds:
            keys[quick] = key = _kind_key(path, each.schema)
            kinds[quick] = by_key.setdefault(key, _Kind(_without(each.schema, key[1]), _FAR_AHEAD))
        kinds[quick].add(each.file)
    by_weight = sorted(
        by_key.items(),
        key=lambda item: (-item[1].files_with_rows, -item[1].files, item[1].oldest, item[0][0], sorted(item[0][1])),
    )
    schema, fitting, reasons = known, [], {}
    for key, kind in by_weight:
        try:
            kind.schema = kind.schema if schema is None else _respelled(kind.schema, schema)
            schema = _joined(schema, kind.schema)
            fitting.append(kind)
        except Incompatible as error:
            reasons[key] = str(error)
    if known is None and fitting:
        schema = unify_schemas([kind.schema for kind in sorted(fitting, key=lambda kind: kind.oldest)], reading=True)
    return FolderSchema(schema, reasons)


def _kind_key(path: str, schema: pa.Schema) -> _KindKey:
    return schema_to_json(schema), frozenset(name for name, _ in hive_pairs(path)).intersection(schema.names)


def _without(schema: pa.Schema, names: Collection[str]) -> pa.Schema:
    return without_views(pa.schema([field for field in schema if field.name not in names]))


def _respelled(schema: pa.Schema, known: pa.Schema) -> pa.Schema:
    """The schema with its columns under the names by which they are known, where these differ only in case.

    Raises:
        Incompatible: It is not clear which column is meant.
    """
    fields = []
    for field in schema:
        alike = [name for name in known.names if name.lower() == field.name.lower()]
        if not alike or field.name in alike:
            fields.append(field)
            continue
        if len(alike) > 1 or sum(name.lower() == field.name.lower() for name in schema.names) > 1:
            names = " or ".join(map(repr, sorted({*alike, field.name})))
            raise Incompatible(f"column {field.name!r}: {names} differ only in case, and several are in one file")
        fields.append(spelled(field.with_name(alike[0]), [field.name]))
    return pa.schema(fields)


def _joined(known: pa.Schema | None, other: pa.Schema) -> pa.Schema:
    """The schema of both, if a scan can read files of ``other`` under it.

    Raises:
        Incompatible: There is none.
    """
    if len(set(other.names)) < len(other.names):
        raise Incompatible("two columns share a name")
    joined = other if known is None else unify_schemas([known, other], reading=True)
    for field in other:
        try:
            pa.nulls(0, field.type).cast(joined.field(field.name).type)
        except (pa.ArrowException, NotImplementedError) as error:
            raise Incompatible(f"column {field.name!r} cannot be read as {joined.field(field.name).type}") from error
    return joined
