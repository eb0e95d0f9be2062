"""What the footers of an adopted folder's files say: read many at once, each once, and kept in few bytes."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import islice
from typing import Final, Protocol, TypeAlias

import msgspec
import pyarrow as pa

from datalake_assets.core.facts import PagesCompared, Problem
from datalake_assets.core.files import DataFile, FileKind, file_kind
from datalake_assets.core.wording import name_text
from datalake_assets.errors import (
    DatalakeError,
    ObjectNotFound,
    PreconditionFailed,
    UnreadableFile,
    unforeseen_text,
)
from datalake_assets.lake.adopted.kernel_footers import KernelFooter, KernelLook
from datalake_assets.lake.adopted.marks import refused_file
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store.base import ObjectInfo, Store
from datalake_assets.parquet.adopted_footer import (
    TAIL_BYTES,
    AdoptedFooter,
    bytes_needed,
    is_parquet,
    read_adopted_footer,
)
from datalake_assets.parquet.native import load_kernel

__all__ = ["Footers", "PageLook", "Read"]

logger = logging.getLogger(__name__)

#: Footers that are read at once; S3 answers in tens of milliseconds.
THREADS: Final = 32
#: Files whose footers are read before the first of them is put away.
AT_ONCE: Final = 1024
#: Files that one thread takes at a time.
TOGETHER: Final = 128
#: Gives the files of a partition that are wanted.
FilesOf: TypeAlias = Callable[[str], Sequence[ObjectInfo]]
#: What is known of a file: its footer, what is wrong with it, or None if it is no data file.
Outcome: TypeAlias = "AdoptedFooter | Problem | None"


class PageLook(Protocol):
    """Looks at the pages of files, as far as it can."""

    compared: PagesCompared
    reached: set[str]

    def walked(self, size_bytes: int, *, has_checksums: bool) -> bool:
        """Counts a file whose pages somebody has walked and found right; False if enough was looked at before."""

    def damaged(self, files: Sequence[ObjectInfo]) -> Mapping[str, str]:
        """By key, why files are damaged."""


class _Row(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A file whose footer was read; ``schema`` is its place among those that were met."""

    name: str
    etag: str
    rows: int
    size_bytes: int
    min_time: datetime | None
    max_time: datetime | None
    written_at: datetime | None
    damaged: str
    compared: bool
    schema: int


class _Bad(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Another file; without a reason it is no data file."""

    name: str
    etag: str
    reason: str


class _Pack(msgspec.Struct, frozen=True, array_like=True):
    rows: list[_Row]
    others: list[_Bad]


_decoder = msgspec.msgpack.Decoder(_Pack)


class Read:
    """What was found in the footers of some files; unpacked partition by partition, each time that it is asked for.

    Attributes:
        keys: The partitions.
        problems: Files that cannot be read.
        other_files: Number of files that turned out to be no data files.
    """

    def __init__(self, footers: Footers, keys: Collection[str], files_of: FilesOf) -> None:
        self._footers, self._files_of = footers, files_of
        self.keys, self.problems, self.other_files = keys, list[Problem](), 0
        for key in footers.others.intersection(keys):
            for outcome in footers.outcomes(key, files_of(key)).values():
                if isinstance(outcome, Problem):
                    self.problems.append(outcome)
                self.other_files += outcome is None

    def of(self, key: str, files: Sequence[ObjectInfo] | None = None) -> Mapping[str, AdoptedFooter]:
        """By name, the footers that were read of a partition's files, or of some of them."""
        if not self._footers.has_read(key):
            return {}
        found = self._footers.outcomes(key, self._files_of(key) if files is None else files)
        return {name: each for name, each in found.items() if isinstance(each, AdoptedFooter)}

    def found(self) -> Iterator[tuple[str, AdoptedFooter]]:
        """Every footer that was read, with its partition's key."""
        return ((key, each) for key in self.keys for each in self.of(key).values())


class Footers:
    """Reads the footers of an adopted folder's files, each once: those of files that did not change are remembered.

    Args:
        folder: The feed.
        pages: Looks at the pages of these files, too.

    Attributes:
        files: Footers that were read.
        seconds: How long that took.
        schemas: That were found in them.
        others: Keys of partitions with files that cannot be read, or are no data files.
    """

    def __init__(self, folder: FeedFolder, *, pages: PageLook | None = None) -> None:
        self._folder, self._pages = folder, pages
        self._packs: dict[str, list[bytes]] = {}
        self.others, self.schemas = set[str](), list[pa.Schema]()
        self._places: dict[bytes, int] = {}
        kernel = load_kernel() if "://" not in folder.data_store.uri else None
        self._kernel = KernelLook(kernel, folder, self._footer) if kernel is not None else None
        self.files = 0
        self.seconds = 0.0

    def read(
        self,
        keys: Collection[str],
        files_of: FilesOf,
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Read:
        """Reads footers, many at once; files that vanish or change meanwhile are left to the next listing.

        Args:
            keys: Partitions.
            files_of: The files of one that are wanted; asked for repeatedly.
            on_progress: Called now and then with how many were read, and of how many.

        Raises:
            ConfigError: A file was written for a table of another format.
        """
        began, done = time.monotonic(), 0
        total = sum(len(self._unread(key, files_of(key))) for key in keys) if on_progress is not None else 0
        unwalked: dict[str, list[str]] = defaultdict(list)
        with ThreadPoolExecutor(THREADS, thread_name_prefix="footers") as pool:
            unread = ((key, info) for key in keys for info in self._unread(key, files_of(key)))
            while some := list(islice(unread, AT_ONCE)):
                slices = [some[start : start + TOGETHER] for start in range(0, len(some), TOGETHER)]
                look = self._look_together if self._kernel is not None else self._look_at_each
                self._put_away(some, [each for part in pool.map(look, slices) for each in part], unwalked)
                done += len(some)
                if on_progress is not None:
                    on_progress(done, total)
        self.files += done
        self.seconds += time.monotonic() - began
        if self._pages is not None:
            self._look_at_pages(self._pages, unwalked, files_of)
        return Read(self, keys, files_of)

    @property
    def compared(self) -> PagesCompared | None:
        """How far pages were compared."""
        return self._pages.compared if self._pages is not None else None

    def has_read(self, key: str) -> bool:
        """Whether footers of a partition's files were read."""
        return key in self._packs

    def outcomes(self, key: str, files: Sequence[ObjectInfo]) -> Mapping[str, Outcome]:
        """By name, what is known of these files of a partition as they are now."""
        known, found = self._known(key), dict[str, Outcome]()
        for info in files:
            name = _name(info)
            row = known.get(name)
            if row is not None and row.etag == info.etag:
                found[name] = self._outcome(key, info, row)
        return found

    def _known(self, key: str) -> dict[str, _Row | _Bad]:
        found: dict[str, _Row | _Bad] = {}
        for packed in self._packs.get(key, ()):
            pack = _decoder.decode(packed)
            found.update((row.name, row) for row in pack.rows)
            found.update((bad.name, bad) for bad in pack.others)
        return found

    def _unread(self, key: str, files: Sequence[ObjectInfo]) -> Sequence[ObjectInfo]:
        if key not in self._packs:
            return files
        known = self._known(key)
        return [each for each in files if (row := known.get(_name(each))) is None or row.etag != each.etag]

    def _outcome(self, key: str, info: ObjectInfo, row: _Row | _Bad) -> Outcome:
        if isinstance(row, _Bad):
            return self._problem(key, info, row.reason) if row.reason else None
        file = DataFile(
            row.name,
            row.rows,
            row.size_bytes,
            row.min_time,
            row.max_time,
            etag=row.etag,
            written_at=row.written_at,
            damaged=row.damaged,
        )
        return AdoptedFooter(file, self.schemas[row.schema], compared=row.compared)

    def _put_away(
        self, some: Sequence[tuple[str, ObjectInfo]], found: Sequence[_Found], unwalked: dict[str, list[str]]
    ) -> None:
        """Keeps what was found, and notes the files whose pages nobody has walked."""
        packs: dict[str, _Pack] = {}
        for (key, info), (outcome, has_walked) in zip(some, found, strict=True):
            if isinstance(outcome, _Gone):
                continue
            name = _name(info)
            pack = packs.setdefault(key, _Pack([], []))
            if isinstance(outcome, AdoptedFooter):
                pack.rows.append(self._row(outcome))
                if self._pages is not None and not has_walked:
                    unwalked[key].append(name)
            else:
                pack.others.append(_Bad(name, info.etag, outcome.reason if outcome is not None else ""))
        self.others.update(key for key, pack in packs.items() if pack.others)
        for key, pack in packs.items():
            self._packs.setdefault(key, []).append(msgspec.msgpack.encode(pack))

    def _row(self, footer: AdoptedFooter) -> _Row:
        file = footer.file
        return _Row(
            file.name,
            file.etag,
            file.rows,
            file.size_bytes,
            file.min_time,
            file.max_time,
            file.written_at,
            file.damaged,
            footer.compared,
            self._place(footer.schema),
        )

    def _place(self, schema: pa.Schema) -> int:
        """Of a schema among those that were met: they are few, and all files of one share it."""
        if self.schemas and self.schemas[-1] is schema:
            return len(self.schemas) - 1
        place = self._places.setdefault(schema.serialize().to_pybytes(), len(self.schemas))
        if place == len(self.schemas):
            self.schemas.append(schema)
        return place

    def _look_at_pages(
        self,
        pages: PageLook,
        unwalked: Mapping[str, Collection[str]],
        files_of: FilesOf,
    ) -> None:
        """Has the pages of the files looked at that Arrow read, and of large ones."""
        wanted = {key: set(names) for key, names in unwalked.items()}
        infos = [each for key, names in wanted.items() for each in files_of(key) if _name(each) in names]
        damaged = pages.damaged(infos) if infos else {}
        for key, names in wanted.items():
            known, above = self._known(key), self._folder.data_folder(key)
            rows = [
                msgspec.structs.replace(row, damaged=damaged.get(f"{above}/{row.name}", ""), compared=True)
                for name in names
                if isinstance(row := known[name], _Row) and f"{above}/{name}" in pages.reached
            ]
            self._packs[key].append(msgspec.msgpack.encode(_Pack(rows, [])))

    def _look_together(self, wanted: Sequence[tuple[str, ObjectInfo]]) -> list[_Found]:
        """Looks at some files by the kernel, and by Arrow at those of which that cannot say."""
        assert self._kernel is not None  # noqa: S101  for mypy: it is called for nothing else
        by_kernel = self._kernel.look([info for _, info in wanted])
        return [self._found_natively(*each, looked) for each, looked in zip(wanted, by_kernel, strict=True)]

    def _found_natively(self, key: str, info: ObjectInfo, looked: KernelFooter | None) -> _Found:
        if looked is None:
            return self._look(key, info), False
        if self._pages is None:
            return looked.footer, True
        compared = self._pages.walked(info.size_bytes, has_checksums=looked.has_checksums)
        return AdoptedFooter(looked.footer.file, looked.footer.schema, compared=compared), True

    def _look_at_each(self, wanted: Sequence[tuple[str, ObjectInfo]]) -> list[_Found]:
        return [(self._look(*each), False) for each in wanted]

    def _look(self, key: str, info: ObjectInfo) -> Outcome | _Gone:
        try:
            return self._footer(info)
        except (ObjectNotFound, PreconditionFailed):
            return _Gone()
        except UnreadableFile as error:
            return self._problem(key, info, error.reason)
        except DatalakeError:
            raise
        except Exception as error:
            logger.exception("the footer of %s cannot be read", info.key)
            return self._problem(key, info, unforeseen_text(error))

    def _footer(self, info: ObjectInfo) -> AdoptedFooter | None:
        """A file's footer as Arrow reads it; None if a file whose name says nothing is not Parquet."""
        footer = _read(self._folder, info)
        if footer is not None and footer.table is not None:
            uri = self._folder.data_store.uri.rstrip("/")
            raise refused_file(f"{uri}/{self._folder.data_root}", f"{uri}/{info.key}", footer.table)
        return footer

    def _problem(self, key: str, info: ObjectInfo, reason: str) -> Problem:
        return Problem(name_text(key), name_text(info.key.removeprefix(f"{self._folder.data_root}/")), reason)


class _Gone:
    """Nobody can say: the file vanished, or changed, before its footer was read."""


#: What was found of a file, and whether its pages are settled.
_Found: TypeAlias = "tuple[Outcome | _Gone, bool]"


def _name(info: ObjectInfo) -> str:
    return info.key.rpartition("/")[2]


def _read(folder: FeedFolder, info: ObjectInfo) -> AdoptedFooter | None:
    store: Store = folder.data_store
    tail = store.tail(info.key, TAIL_BYTES, etag=info.etag) if info.size_bytes else b""
    if file_kind(info.key, info.size_bytes) is FileKind.PERHAPS and not is_parquet(tail):
        return None
    needed = bytes_needed(tail, info.size_bytes, where=info.key)
    if needed > len(tail):
        tail = store.tail(info.key, needed, etag=info.etag)
    found = read_adopted_footer(tail, info.size_bytes, time_column=folder.feed.time_column, where=info.key)
    file = msgspec.structs.replace(found.file, etag=info.etag, written_at=info.modified_at)
    return dataclasses.replace(found, file=file)
