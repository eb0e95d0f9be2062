"""Dropped files converted one by one, without a lake: each to a Parquet file, an Avro file, or both of one parse.

A file is converted whole or not at all: its outputs become visible, under their own names, once all of them are
written. Rows that could not be read stand beside them, with their lines.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Literal, Protocol, Self, cast
from urllib.parse import urlsplit

import pyarrow as pa

from datalake_assets.errors import ConfigError, LakeUnavailable, SourceError
from datalake_assets.parquet.avro_writer import AvroCodec, AvroFileWriter
from datalake_assets.parquet.writer import ParquetFileWriter, ParquetSettings, use_pool
from datalake_assets.sources.files.contents import IN_MEMORY_BYTES, BadFile, ContentLimits, prepared
from datalake_assets.sources.files.converted_names import OutputNames, made_names, output_names, undecided_text
from datalake_assets.sources.files.csv_values import BadRecord, Parsed
from datalake_assets.sources.files.dropped_objects import (
    DroppedObject,
    DroppedObjects,
    LocalObjects,
    ObjectGone,
    S3Objects,
    is_drop,
    open_place,
)
from datalake_assets.sources.files.file_reading import OtherTypes, ReadableFile, ReadingOptions, opened
from datalake_assets.sources.files.side_by_side import side_by_side
from datalake_assets.sources.files.text_values import named_type

__all__ = [
    "Conversion",
    "ConvertedFile",
    "OutputFormat",
    "S3Place",
    "convert_files",
    "destination_of",
    "new_spool",
    "source_of",
]

OutputFormat = Literal["parquet", "avro"]
#: Where rows go that could not be read, below the destination; no reader of data looks there.
REJECTED = "_rejected"
#: Batches that wait for a writer.
WAITING = 2


@dataclass(frozen=True, slots=True)
class Conversion:
    """What to make of files.

    Attributes:
        formats: What each becomes.
        options: How they are read.
        encoding: What they are written in; None: what it looks like.
        types: Types of columns by their names in the files, where they are not inferred.
        parquet: How Parquet is written.
        codec: Of Avro.
        limits: How large packed files may become.
    """

    formats: tuple[OutputFormat, ...] = ("parquet",)
    options: ReadingOptions = field(default_factory=ReadingOptions)
    encoding: str | None = None
    types: Mapping[str, str] = field(default_factory=dict)
    parquet: ParquetSettings = field(default_factory=ParquetSettings)
    codec: AvroCodec = "snappy"
    limits: ContentLimits = field(default_factory=ContentLimits)


@dataclass(frozen=True, slots=True)
class ConvertedFile:
    """What became of one file.

    Attributes:
        name: Its name.
        rows: Rows that were converted.
        rejected: Rows that could not be read.
        size_bytes: Its size.
        outputs: Sizes of its outputs, by their names.
        seconds: Time that it took.
        refused: Why nothing was made of it; empty if something was.
        may_succeed_later: Whether it is not the file's own fault: it changed meanwhile, or a server failed.
    """

    name: str
    rows: int = 0
    rejected: int = 0
    size_bytes: int = 0
    outputs: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    refused: str = ""
    may_succeed_later: bool = False

    @property
    def ratio(self) -> float:
        """Times that the file is as large as its outputs are on average; 0 if there is none."""
        written = sum(self.outputs.values())
        return self.size_bytes * len(self.outputs) / written if written else 0.0


class _Place(Protocol):
    """Where outputs go.

    Attributes:
        uri: Its address.
    """

    uri: str

    def spool(self) -> IO[bytes]:
        """A file that is to be put here once it is whole; nobody sees it, and nothing is left of it if it never is."""

    def put(self, name: str, spool: IO[bytes]) -> None:
        """Makes a whole file visible under a name, at once."""

    def names(self) -> Iterator[str]:
        """What lies here."""


class _LocalPlace:
    def __init__(self, folder: Path) -> None:
        self._folder, self.uri = folder, str(folder)

    def spool(self) -> IO[bytes]:
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            return os.fdopen(os.open(self._folder, os.O_TMPFILE | os.O_RDWR, 0o666), "w+b")
        except (AttributeError, OSError):  # not every system, nor every file system, has files without a name
            return new_spool()

    def put(self, name: str, spool: IO[bytes]) -> None:
        target = self._folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        part.unlink(missing_ok=True)
        if not _is_named(spool, part):
            spool.seek(0)
            with part.open("wb") as file:
                shutil.copyfileobj(spool, file, 1 << 20)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(target)

    def names(self) -> Iterator[str]:
        return (each.name for each in LocalObjects(self._folder).list()) if self._folder.is_dir() else iter(())


def new_spool() -> IO[bytes]:
    """A file that is in memory while it is small."""
    return cast("IO[bytes]", tempfile.SpooledTemporaryFile(max_size=IN_MEMORY_BYTES))


def _is_named(spool: IO[bytes], path: Path) -> bool:
    """Gives a file without a name one, if that can be done; see open(2), ``O_TMPFILE``."""
    if isinstance(spool, tempfile.SpooledTemporaryFile):
        return False
    spool.flush()
    try:
        os.link(f"/proc/self/fd/{spool.fileno()}", path, follow_symlinks=True)
    except OSError:
        return False
    return True


class S3Place:
    """A bucket, or a prefix of it."""

    def __init__(self, objects: S3Objects) -> None:
        self._objects, self.uri = objects, objects.uri

    def spool(self) -> IO[bytes]:
        """Here and not there until it is whole."""
        return new_spool()

    def put(self, name: str, spool: IO[bytes]) -> None:
        """By one upload."""
        spool.seek(0)
        self._objects.upload(name, spool)

    def names(self) -> Iterator[str]:
        """By a listing."""
        return (each.name for each in self._objects.list())


def destination_of(uri: str, *, endpoint: str | None) -> _Place:
    """The place that outputs go to.

    Raises:
        ConfigError: It is no folder and no S3 prefix.
    """
    place = open_place(uri, endpoint=endpoint)
    if isinstance(place, S3Objects):
        return S3Place(place)
    if isinstance(place, LocalObjects):
        return _LocalPlace(Path(place.uri))
    raise ConfigError(f"{uri!r} cannot take files")


def source_of(uri: str, pattern: str, *, endpoint: str | None) -> tuple[DroppedObjects, Iterator[DroppedObject]]:
    """The place that files come from, and those of them that match; a single file is one of its folder.

    Raises:
        ConfigError: There is no such place.
        SourceError: It cannot be listed.
    """
    place = open_place(uri, endpoint=endpoint)
    if isinstance(place, LocalObjects) and Path(place.uri).is_file():
        file = Path(place.uri)
        folder = LocalObjects(file.parent)
        found = folder.find(file.name)
        return folder, iter([] if found is None else [found])
    parts = urlsplit(uri)
    if isinstance(place, S3Objects) and parts.path.strip("/") and not uri.endswith("/"):
        above, _, name = parts.path.strip("/").rpartition("/")
        single = S3Objects(parts.netloc, f"{above}/" if above else "", endpoint=endpoint)
        found = single.find(name)
        if found is not None:
            return single, iter([found])
        single.close()
    return place, (each for each in place.list() if is_drop(each.name, pattern))


def convert_files(
    source: tuple[DroppedObjects, Iterator[DroppedObject]],
    destination: _Place,
    conversion: Conversion,
    *,
    workers: int,
    outputs: OutputNames | None = None,
) -> Iterator[ConvertedFile]:
    """Converts files, several at once; yields what became of each as it is done. One bad file stops no other.

    Args:
        source: Where the files are, and which.
        destination: Where outputs go.
        conversion: What to make of them.
        workers: Files at once.
        outputs: Names of outputs without suffix; None: by `output_names`, and what lies at the destination.

    Raises:
        SourceError: The source cannot be listed any more.
        LakeUnavailable: The destination cannot be written.
    """
    use_pool("system")
    place, listed = source
    # outputs may lie among the files
    files = [each for each in listed if PurePosixPath(each.name).suffix.lower() not in _OUTPUTS]
    named = outputs or output_names([each.name for each in files], made_names(destination.names(), conversion.formats))

    def convert(one: DroppedObject) -> Iterator[ConvertedFile]:
        began = time.monotonic()
        if one.name in named.undecided:
            reason = undecided_text(one.name)
            yield ConvertedFile(one.name, size_bytes=one.size_bytes, refused=reason, may_succeed_later=True)
            return
        try:
            yield _converted(place, one, named.names[one.name], destination, conversion)
        except BadFile as error:
            reason, later = str(error), False
        except ObjectGone:
            reason, later = "it is gone, or another by now", True
        except SourceError as error:
            reason, later = error.reason, True
        except OSError as error:
            cure = "make room there, or allow this user to write; files that are whole stay, and are made only once"
            reason = f"outputs cannot be written ({error.strerror or error})"
            raise LakeUnavailable(destination.uri, reason, cure=cure) from error
        else:
            return
        seconds = time.monotonic() - began
        yield ConvertedFile(
            one.name, size_bytes=one.size_bytes, seconds=seconds, refused=reason, may_succeed_later=later
        )

    return side_by_side(files, convert, workers=workers)


_OUTPUTS = {".parquet", ".avro"}


def _converted(
    place: DroppedObjects, dropped: DroppedObject, output: str, destination: _Place, conversion: Conversion
) -> ConvertedFile:
    began = time.monotonic()
    stream = place.open(dropped)
    with ExitStack() as held:
        contents = held.enter_context(
            closing(prepared(stream, is_kept=True, encoding=conversion.encoding, limits=conversion.limits))
        )
        file = opened(dropped.name, contents, conversion.options)
        try:
            declared = {name: named_type(kind) for name, kind in conversion.types.items()}
        except ValueError as error:
            raise ConfigError(str(error)) from error
        outputs = held.enter_context(_written(file, declared, destination, conversion))
        sizes = outputs.finish()
        if not place.is_unchanged(dropped):
            raise ObjectGone(dropped.name)
        named = {f"{output}.{each}": size for each, size in sizes.items()}
        if outputs.rejected is not None:
            destination.put(f"{REJECTED}/{dropped.name}.jsonl", outputs.rejected)
        for each in conversion.formats:
            destination.put(f"{output}.{each}", outputs.spools[each])
    seconds = time.monotonic() - began
    return ConvertedFile(dropped.name, outputs.rows, outputs.bad, dropped.size_bytes, named, seconds)


def _written(
    file: ReadableFile, declared: Mapping[str, pa.DataType], destination: _Place, conversion: Conversion
) -> _Outputs:
    """Writes a file's rows in the types that all of it has, which most files show at their beginning."""
    known = {name: declared[name] for name in file.names if name in declared}
    while (guess := file.guessed(known)) is not None:
        with suppress(OtherTypes):
            return _in_types(*guess, destination, conversion)
    kinds = file.kinds()
    types = {name: declared.get(name) or kinds[name].type for name in file.names}
    return _in_types(types, file.rows(types), destination, conversion)


def _in_types(
    types: Mapping[str, pa.DataType], rows: Iterator[Parsed], destination: _Place, conversion: Conversion
) -> _Outputs:
    with ExitStack() as held:
        outputs = held.enter_context(_Outputs(pa.schema(list(types.items())), conversion, destination))
        for parsed in rows:
            outputs.write(parsed)
        held.pop_all()
    return outputs


def _lines(bad: Sequence[BadRecord]) -> bytes:
    said = (
        {"line": each.line, "reason": each.reason, "raw": each.raw.decode(errors="backslashreplace")} for each in bad
    )
    return b"".join(json.dumps(each, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n" for each in said)


class _Outputs:
    """The outputs of one file, each written by a thread of its own, into spools; bad records as they come into another.

    Attributes:
        rows: How many were written.
        bad: How many records could not be.
        rejected: These, a line each; None if there are none.
    """

    def __init__(self, schema: pa.Schema, conversion: Conversion, destination: _Place) -> None:
        self.rows, self.bad, self._held, self._destination = 0, 0, ExitStack(), destination
        self.rejected: IO[bytes] | None = None
        self.spools: dict[OutputFormat, IO[bytes]] = {}
        self._writers: dict[OutputFormat, _Queued] = {}
        for each in conversion.formats:
            spool = self.spools[each] = self.spool()
            make = _parquet if each == "parquet" else _avro
            self._writers[each] = _Queued(*make(spool, schema, conversion))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._writers.values():
            each.stop()
        self._held.close()

    def spool(self) -> IO[bytes]:
        """A file of its own for a while."""
        spool = self._destination.spool()
        self._held.callback(spool.close)
        return spool

    def write(self, parsed: Parsed) -> None:
        """Hands rows to every writer."""
        self.rows += parsed.rows.num_rows
        if parsed.bad:  # a file may have nothing else
            self.bad += len(parsed.bad)
            self.rejected = self.rejected or self.spool()
            self.rejected.write(_lines(parsed.bad))
        for each in self._writers.values():
            each.write(parsed.rows)

    def finish(self) -> dict[OutputFormat, int]:
        """Ends all writers; sizes by format."""
        for each in self._writers.values():
            each.finish()
        return {each: spool.seek(0, os.SEEK_END) for each, spool in self.spools.items()}


Write = Callable[[pa.RecordBatch | None], None]


def _parquet(spool: IO[bytes], schema: pa.Schema, conversion: Conversion) -> tuple[Write, Callable[[], None]]:
    """What writes rows, None for the end; and what gives the file up."""
    writer = ParquetFileWriter(_Plain(spool), schema, conversion.parquet)
    waiting: list[pa.RecordBatch] = []

    def write(rows: pa.RecordBatch | None) -> None:
        if rows is not None and rows.num_rows:
            waiting.append(rows)
        is_full = sum(each.nbytes for each in waiting) >= conversion.parquet.row_group_bytes
        if waiting and (rows is None or is_full):
            writer.write_batches(waiting)
        if rows is None:
            writer.close()

    return write, writer.abandon


def _avro(spool: IO[bytes], schema: pa.Schema, conversion: Conversion) -> tuple[Write, Callable[[], None]]:
    try:
        writer = AvroFileWriter(spool, schema, codec=conversion.codec)
    except ValueError as error:
        raise BadFile(str(error)) from error

    def write(rows: pa.RecordBatch | None) -> None:
        if rows is not None:
            writer.write(rows)

    return write, lambda: None


class _Plain:
    """A spool as Parquet's writer wants it."""

    def __init__(self, spool: IO[bytes]) -> None:
        self._spool, self.closed = spool, False

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        return self._spool.write(data)

    def tell(self) -> int:
        return self._spool.tell()

    def flush(self) -> None: ...

    def close(self) -> None: ...


class _Queued:
    """A writer in a thread of its own, with a short queue."""

    def __init__(self, write: Write, abandon: Callable[[], None]) -> None:
        self._write, self._abandon = write, abandon
        self._pool = ThreadPoolExecutor(1, "file-writer")
        self._waiting: list[Future[None]] = []

    def write(self, rows: pa.RecordBatch | None) -> None:
        while len(self._waiting) >= WAITING:
            self._waiting.pop(0).result()
        self._waiting.append(self._pool.submit(self._write, rows))

    def finish(self) -> None:
        self.write(None)
        while self._waiting:
            self._waiting.pop(0).result()

    def stop(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._abandon()
