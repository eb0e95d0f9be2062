"""What is in an adopted folder: one listing, the footers of the files that are not known yet, and their one schema.

`datalake_assets.parquet.schemas` says which schemas become one. Where some do not, most of the files with rows decide:
the others stay in their manifests, are left out of scans, are not compacted, and are named.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import msgspec
import pyarrow as pa

from datalake_assets.core.facts import PagesCompared, Problem
from datalake_assets.core.files import DataFile, FileKind, file_kind
from datalake_assets.core.partitions import hive_pairs, partition_key
from datalake_assets.core.schema import schema_to_json, spelled
from datalake_assets.core.wording import name_text
from datalake_assets.errors import (
    ConfigError,
    DatalakeError,
    ObjectNotFound,
    PreconditionFailed,
    UnreadableFile,
    unforeseen_text,
)
from datalake_assets.lake.adopted.marks import refuse_path, refused_file
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store.base import ObjectInfo, Store, check_key
from datalake_assets.parquet.adopted_footer import (
    TAIL_BYTES,
    AdoptedFooter,
    bytes_needed,
    is_parquet,
    read_adopted_footer,
)
from datalake_assets.parquet.schemas import Incompatible, unify_schemas, without_views

__all__ = [
    "FolderSchema",
    "Footers",
    "Listing",
    "Read",
    "fold",
    "list_folder",
]

logger = logging.getLogger(__name__)

#: Footers that are read at once; S3 answers in tens of milliseconds.
THREADS = 32
#: Footers whose reading is begun before the first of them is parsed.
AT_ONCE = 1024
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


@dataclass(slots=True)
class Read:
    """What was found in the footers.

    Attributes:
        found: By partition key and file name.
        problems: Files that cannot be read.
        other_files: Number of files that turned out to be no data files.
    """

    found: dict[tuple[str, str], AdoptedFooter] = dataclasses.field(default_factory=dict)
    problems: list[Problem] = dataclasses.field(default_factory=list)
    other_files: int = 0

    def add(self, key: str, outcome: AdoptedFooter | Problem | None) -> None:
        """Sorts one file in."""
        if isinstance(outcome, AdoptedFooter):
            self.found[key, outcome.file.name] = outcome
        elif isinstance(outcome, Problem):
            self.problems.append(outcome)
        else:
            self.other_files += 1


def list_folder(folder: FeedFolder, only: str | None = None) -> Listing:
    """Lists an adopted folder.

    Args:
        folder: The feed.
        only: The one partition that is wanted; None for all.

    Raises:
        ConfigError: It is a table of a format with a log of its own.
    """
    root, other_files = folder.data_root, 0
    partitions: dict[str, dict[str, ObjectInfo]] = defaultdict(dict)
    problems, links = [], []
    long: dict[str, str | None] = {}
    for info in folder.data_store.list(root if only is None else folder.data_folder(only), links=True):
        path = info.key.removeprefix(f"{root}/")
        refuse_path(_uri(folder), path)
        if file_kind(path, info.size_bytes) is FileKind.OTHER:
            other_files += 1
            continue
        above, _, name = path.rpartition("/")
        key = partition_key(folder.feed, above) or ""
        if only not in {None, key}:
            continue
        if above not in long:
            long[above] = _too_long(folder, above)
        wrong = _wrong_name(path) or long[above]
        if info.is_link:
            links.append(_problem(key, path, "it is a link, which is neither followed nor deleted"))
        elif wrong:
            problems.append(_problem(key, path, wrong))
        else:
            partitions[key][name] = info
    return Listing(partitions, other_files, tuple(problems), tuple(links))


def _problem(key: str, path: str, reason: str) -> Problem:
    return Problem(name_text(key), name_text(path), reason)


def _too_long(folder: FeedFolder, path: str) -> str | None:
    """Why a partition of this path can have no manifest, or no file of ours."""
    manifest, ours = f"{folder.control}/{path}/manifest.json", f"{folder.data_root}/{path}/{'x' * OUR_NAME_BYTES}"
    for store, key in ((folder.store, manifest), (folder.data_store, ours)):
        full, most = f"{store.path('')}/{key}", PATH_MAX_BYTES
        if store.uri.startswith("s3://"):
            full, most = full.partition("/")[2], KEY_MAX_BYTES
        if len(full.encode(errors="surrogateescape")) > most:
            return "its path is too long for a manifest, or for a merged file beside it"
    return None


def _wrong_name(path: str) -> str | None:
    if _OURS & set(path.split("/")[:-1]):
        return "a folder above it has a name that manifests need for themselves"
    try:
        check_key(path)
    except ConfigError:
        return "its name is not UTF-8, or has control characters or a backslash"
    return None


class PageLook(Protocol):
    """Looks at the pages of files, as far as it can."""

    compared: PagesCompared
    reached: set[str]

    def damaged(self, files: Sequence[ObjectInfo]) -> Mapping[str, str]:
        """By key, why files are damaged."""


class Footers:
    """Reads the footers of an adopted folder's files, each once: those of files that did not change are remembered.

    Args:
        folder: The feed.
        pages: Looks at the pages of these files, too.

    Attributes:
        files: Footers that were read.
        seconds: How long that took.
    """

    def __init__(self, folder: FeedFolder, *, pages: PageLook | None = None) -> None:
        self._folder, self._pages = folder, pages
        self._known: dict[str, tuple[str, AdoptedFooter | Problem | None]] = {}
        self._schemas: dict[bytes, pa.Schema] = {}
        self.files = 0
        self.seconds = 0.0

    def read(
        self, wanted: Sequence[tuple[str, ObjectInfo]], *, on_progress: Callable[[int, int], None] | None = None
    ) -> Read:
        """Reads footers, many at once; files that vanish or change meanwhile are left to the next listing.

        Args:
            wanted: Partition keys and files.
            on_progress: Called now and then with how many were read, and of how many.

        Raises:
            ConfigError: A file was written for a table of another format.
        """
        began = time.monotonic()
        unread = [each for each in wanted if self._known.get(each[1].key, ("", None))[0] != each[1].etag]
        with ThreadPoolExecutor(THREADS, thread_name_prefix="footers") as pool:
            for start in range(0, len(unread), AT_ONCE):  # tails are held until they are understood
                some = unread[start : start + AT_ONCE]
                for number, (each, outcome) in enumerate(zip(some, pool.map(self._look, some), strict=True), start + 1):
                    if not isinstance(outcome, _Gone):
                        self._known[each[1].key] = (each[1].etag, outcome)
                    if on_progress is not None:
                        on_progress(number, len(unread))
        self.files += len(unread)
        self.seconds += time.monotonic() - began
        if self._pages is not None:
            self._look_at_pages(self._pages, [info for _, info in unread])
        read = Read()
        for key, info in wanted:
            etag, known = self._known.get(info.key, ("", None))
            if etag == info.etag:
                read.add(key, known)
        return read

    @property
    def compared(self) -> PagesCompared | None:
        """How far pages were compared."""
        return self._pages.compared if self._pages is not None else None

    @property
    def pages_compared(self) -> AbstractSet[str]:
        """Keys of the files whose pages were looked at to the end."""
        return self._pages.reached if self._pages is not None else frozenset()

    def _look_at_pages(self, pages: PageLook, infos: Sequence[ObjectInfo]) -> None:
        readable = [info for info in infos if isinstance(self._known.get(info.key, ("", None))[1], AdoptedFooter)]
        for key, reason in pages.damaged(readable).items():
            etag, footer = self._known[key]
            assert isinstance(footer, AdoptedFooter)  # noqa: S101  for mypy: these were asked for
            file = msgspec.structs.replace(footer.file, damaged=reason)
            self._known[key] = etag, dataclasses.replace(footer, file=file)

    def _look(self, wanted: tuple[str, ObjectInfo]) -> AdoptedFooter | Problem | _Gone | None:
        key, info = wanted
        try:
            footer = _read(self._folder, info)
        except (ObjectNotFound, PreconditionFailed):
            return _Gone()
        except UnreadableFile as error:
            return _problem(key, info.key.removeprefix(f"{self._folder.data_root}/"), error.reason)
        except DatalakeError:
            raise
        except Exception as error:
            logger.exception("the footer of %s cannot be read", info.key)
            return _problem(key, info.key.removeprefix(f"{self._folder.data_root}/"), unforeseen_text(error))
        if footer is None:
            return None
        if footer.table is not None:
            where = f"{self._folder.data_store.uri.rstrip('/')}/{info.key}"
            raise refused_file(_uri(self._folder), where, footer.table)
        schema = self._schemas.setdefault(footer.schema.serialize().to_pybytes(), footer.schema)
        file = msgspec.structs.replace(footer.file, etag=info.etag, written_at=info.modified_at)
        return AdoptedFooter(file, schema)


class _Gone:
    """Nobody can say: the file vanished, or changed, before its footer was read."""


def _uri(folder: FeedFolder) -> str:
    return f"{folder.data_store.uri.rstrip('/')}/{folder.data_root}"


def _read(folder: FeedFolder, info: ObjectInfo) -> AdoptedFooter | None:
    """A file's footer; None if a file whose name says nothing is not Parquet."""
    store: Store = folder.data_store
    tail = store.tail(info.key, TAIL_BYTES, etag=info.etag) if info.size_bytes else b""
    if file_kind(info.key, info.size_bytes) is FileKind.PERHAPS and not is_parquet(tail):
        return None
    needed = bytes_needed(tail, info.size_bytes, where=info.key)
    if needed > len(tail):
        tail = store.tail(info.key, needed, etag=info.etag)
    return read_adopted_footer(tail, info.size_bytes, time_column=folder.feed.time_column, where=info.key)


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
            pa.array([], field.type).cast(joined.field(field.name).type)
        except (pa.ArrowException, NotImplementedError) as error:
            raise Incompatible(f"column {field.name!r} cannot be read as {joined.field(field.name).type}") from error
    return joined
