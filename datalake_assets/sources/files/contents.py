"""A dropped file's bytes made ready: unpacked, in UTF-8, with their checksum, before the first row of it is handed on.

Whatever can be wrong with a file as a whole is found here: an archive that is cut short or damaged, or that would
become far larger than it is; an encoding that is none. So a file that is refused has not landed any row.
"""

from __future__ import annotations

import bz2
import codecs
import errno
import gzip
import io
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, BinaryIO, Self, cast

import pyarrow as pa
import xxhash

__all__ = ["BadFile", "ContentLimits", "Contents", "prepared"]

#: Bytes by which an encoding is known that no mark tells.
_LOOKED_AT_BYTES = 64 << 10
_LINE_END = ord("\n")
#: Bytes that are read at a time, and up to which a file stays in memory.
PIECE_BYTES, IN_MEMORY_BYTES = 1 << 20, 8 << 20
_UTF8_BOM = b"\xef\xbb\xbf"
#: The longer ones first: UTF-32's begins as UTF-16's does.
_BOMS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_PACKED = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bzip2"), (b"PK\x03\x04", "zip"))
_DAMAGED = (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError)
#: Codecs give none; a place that a damaged archive names is no place to seek.
_OF_DAMAGE = {None, errno.EINVAL}


class BadFile(Exception):
    """A file that cannot be landed, and why."""


@dataclass(frozen=True, slots=True)
class ContentLimits:
    """How large a packed file may become.

    Attributes:
        unpacked_bytes: At the most.
        ratio: Times its own size, but for files that stay small.
    """

    unpacked_bytes: int = 16 << 30
    ratio: int = 250

    def of(self, packed_bytes: int) -> int:
        """Bytes that a file of this size may become."""
        return min(self.unpacked_bytes, max(packed_bytes * self.ratio, 64 << 20))


@dataclass(slots=True)
class Contents:
    """A file that can be read, as often as need be.

    Attributes:
        stream: Its text in UTF-8, without a byte order mark.
        begin: Where the text begins in the stream.
        checksum: XXH3 (128 bits) of the file as it was dropped, hexadecimal.
        size_bytes: Its size.
        encoding: What its text was written in.
        is_utf8: Whether all of the stream is known to be UTF-8; else some bytes may not be.
    """

    stream: BinaryIO
    begin: int
    checksum: str
    size_bytes: int
    encoding: str
    is_utf8: bool

    def rewound(self) -> BinaryIO:
        """The text from its beginning."""
        self.stream.seek(self.begin)
        return self.stream

    def close(self) -> None:
        """Gives up what is held of it."""
        self.stream.close()


def prepared(raw: IO[bytes], *, is_kept: bool, encoding: str | None, limits: ContentLimits) -> Contents:
    """Reads a file once and makes it ready.

    Args:
        raw: The file. It is closed unless it becomes the contents' own stream.
        is_kept: It can be read again from its beginning, and stays as it is meanwhile.
        encoding: What it is written in; None: what it looks like.
        limits: How large it may become.

    Raises:
        BadFile: It is empty, damaged, too large when unpacked, or in no known encoding.
        OSError: This machine cannot read it, or hold it while it is read: that says nothing of the file.
    """
    hashed, seen = xxhash.xxh3_128(), _Utf8()
    with ExitStack() as held:
        held.callback(raw.close)
        source = _taken(raw, (hashed.update, seen.update), held, is_kept=is_kept)
        size = source.seek(0, io.SEEK_END)
        if not size:
            raise BadFile("it is empty")
        try:
            plain = _unpacked(source, limits.of(size), held)
            found, begin, is_utf8 = _encoding(plain, encoding, seen if plain is source else None)
            text = plain if found == "utf-8" else _transcoded(plain, found, held)
        except _DAMAGED as error:
            if isinstance(error, OSError) and error.errno not in _OF_DAMAGE:
                raise
            raise BadFile(_reason(error)) from error
        held.pop_all()
    for each in (raw, source, plain):
        if each is not text:
            each.close()
    return Contents(text, begin if found == "utf-8" else 0, hashed.hexdigest(), size, found, is_utf8)


def _reason(error: BaseException) -> str:
    return f"it is damaged: {' '.join(str(error).split()) or type(error).__name__}"


def _spool(held: ExitStack) -> BinaryIO:
    spool = cast("BinaryIO", tempfile.SpooledTemporaryFile(max_size=IN_MEMORY_BYTES))  # noqa: SIM115  held
    held.callback(spool.close)
    return spool


def _pieces(stream: IO[bytes]) -> Iterator[bytes]:
    while piece := stream.read(PIECE_BYTES):
        yield piece


def _taken(raw: IO[bytes], updates: Sequence[Callable[[bytes], None]], held: ExitStack, *, is_kept: bool) -> BinaryIO:
    """The file where it can be read again, once all its bytes were seen."""
    spool = None if is_kept else _spool(held)
    for piece in _pieces(raw):
        for update in updates:
            update(piece)
        if spool is not None:
            spool.write(piece)
    return cast("BinaryIO", raw) if spool is None else spool


def _unpacked(source: BinaryIO, most: int, held: ExitStack) -> BinaryIO:
    source.seek(0)
    start = source.read(4)
    source.seek(0)
    packing = next((name for magic, name in _PACKED if start.startswith(magic)), None)
    if packing is None:
        return source
    spool = _spool(held)
    written = 0
    with _opened(source, packing) as stream:
        for piece in _pieces(stream):
            written += len(piece)
            if written > most:
                raise BadFile(f"unpacked it is larger than {most >> 20:,} MiB, which is the limit for its size")
            spool.write(piece)
    if not written:
        raise BadFile("it is empty when it is unpacked")
    return spool


def _opened(source: BinaryIO, packing: str) -> IO[bytes]:
    if packing == "gzip":
        return cast("IO[bytes]", gzip.GzipFile(fileobj=source, mode="rb"))
    if packing == "bzip2":
        return cast("IO[bytes]", _Bzip2(source))
    if packing == "zstd":
        return io.BufferedReader(cast("io.RawIOBase", pa.CompressedInputStream(pa.PythonFile(source, "r"), "zstd")))
    archive = zipfile.ZipFile(source)
    files = [each for each in archive.infolist() if not each.is_dir()]
    if len(files) != 1:
        raise BadFile(f"the archive has {len(files)} files; one is expected")
    if files[0].flag_bits & 1:
        raise BadFile("the archive is encrypted")
    return archive.open(files[0])


class _Bzip2:
    """Streams of bzip2 one after another; `bz2.BZ2File` takes a damaged beginning of one for the end of all."""

    def __init__(self, source: BinaryIO) -> None:
        self._source, self._unpacker = source, bz2.BZ2Decompressor()

    def read(self, size: int) -> bytes:
        """Up to so many bytes; none at the end."""
        while True:
            packed = b""
            if self._unpacker.eof:
                packed = self._unpacker.unused_data or self._source.read(PIECE_BYTES)
                if not packed:
                    return b""
                self._unpacker = bz2.BZ2Decompressor()
            elif self._unpacker.needs_input:
                packed = self._source.read(PIECE_BYTES)
                if not packed:
                    raise EOFError("the compressed file ends before its end-of-stream marker")
            if plain := self._unpacker.decompress(packed, size):
                return plain

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to close: the file is somebody else's."""


def _encoding(plain: BinaryIO, declared: str | None, seen: _Utf8 | None) -> tuple[str, int, bool]:
    """What the text is written in, where it begins, and whether all of it is known to be UTF-8 once it is read so.

    Args:
        plain: The text.
        declared: What it is said to be written in.
        seen: What has seen all of it; None: nothing.
    """
    plain.seek(0)
    start = plain.read(_LOOKED_AT_BYTES)
    name = codecs.lookup(declared).name if declared is not None else _looks_like(start)
    if name == "utf-8":
        return name, len(_UTF8_BOM) if start.startswith(_UTF8_BOM) else 0, _is_utf8(plain, seen)
    if name:
        return name, 0, True
    if _is_utf8(plain, seen):
        return "utf-8", 0, True
    name = _eight_bits(plain)
    return name, 0, name != "utf-8"


def _looks_like(start: bytes) -> str:
    """The encoding that a text's first bytes tell; empty if they tell none.

    Without a mark two bytes for each letter are known by their line ends, of which one byte is zero: letters that are
    not Latin have no byte of zero, and may all pass for UTF-8.
    """
    if start.startswith(_UTF8_BOM):
        return "utf-8"
    for mark, name in _BOMS:
        if start.startswith(mark):
            return name
    if len(start) >= 2 and (start[0] == 0) is not (start[1] == 0):  # noqa: PLR2004  a letter in two bytes
        return "utf-16-be" if start[0] == 0 else "utf-16-le"
    first, second = start[0::2], start[1::2]
    if _are_letters(first, second):
        return "utf-16-le"
    return "utf-16-be" if _are_letters(second, first) else ""


def _are_letters(low: bytes, high: bytes) -> bool:
    """Whether each line end is one in two bytes, and no letter has a low byte of zero."""
    if b"\0" in low or b"\0" not in high:
        return False
    ends = sum(pair == (_LINE_END, 0) for pair in zip(low, high, strict=False))
    return ends > 0 and ends == low.count(b"\n") + high.count(b"\n")


#: Bytes that are control characters in Latin-1, and begin or go on in UTF-8.
_NOT_LATIN = bytes(range(0x80, 0xA0))


def _eight_bits(plain: BinaryIO) -> str:
    """Of a text that is not UTF-8: UTF-8 still, if it has any letter of it; else Latin-1, if it has no other bytes.

    A text that is UTF-8 but for some bytes stays UTF-8: its bad records are found one by one.
    """
    plain.seek(0)
    others = bytes(sorted(set(range(256)) - set(_NOT_LATIN)))
    is_latin, has_letters = True, False
    for piece in _pieces(plain):
        if b"\0" in piece:
            raise BadFile("it is no text: it has bytes of zero, and others that are not UTF-8")
        is_latin = is_latin and not piece.translate(None, delete=others)
        has_letters = has_letters or _has_utf8(piece)
    if not has_letters and not is_latin:
        raise BadFile("it is neither UTF-8, UTF-16 nor Latin-1; declare its encoding")
    return "utf-8" if has_letters else "iso8859-1"


class _Utf8:
    """Looks whether all bytes are UTF-8; Arrow looks at many letters at once, and makes no text of them."""

    def __init__(self) -> None:
        self._begun, self._is_so = b"", True

    def update(self, piece: bytes) -> None:
        """Takes the next bytes."""
        if not self._is_so or (not self._begun and piece.isascii()):
            return
        data = self._begun + piece if self._begun else piece
        whole = len(data) - _begun_bytes(data)
        self._is_so, self._begun = _is_whole_utf8(data, whole), data[whole:]

    @property
    def is_whole(self) -> bool:
        """Whether all were, up to here."""
        return self._is_so and not self._begun


def _is_utf8(plain: BinaryIO, seen: _Utf8 | None = None) -> bool:
    if seen is None:
        seen = _Utf8()
        plain.seek(0)
        for piece in _pieces(plain):
            seen.update(piece)
    return seen.is_whole


def _is_whole_utf8(data: bytes, length: int) -> bool:
    offsets = pa.py_buffer(struct.pack("<2i", 0, length))
    try:
        pa.Array.from_buffers(pa.binary(), 1, [None, offsets, pa.py_buffer(data)]).cast(pa.string())
    except pa.ArrowInvalid:
        return False
    return True


#: First bytes of letters that take so many bytes (RFC 3629).
_TWO, _THREE, _FOUR = 0xC0, 0xE0, 0xF0


def _begun_bytes(data: bytes) -> int:
    """Bytes at the end that begin a letter which is not whole."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte >= _TWO:
            needed = 4 if byte >= _FOUR else 3 if byte >= _THREE else 2
            return back if back < needed else 0
        if byte < 0x80:  # noqa: PLR2004  ASCII
            return 0
    return 0


def _has_utf8(piece: bytes) -> bool:
    """Whether some letter that takes several bytes in UTF-8 is there."""
    return len(piece.decode("utf-8", errors="ignore").encode()) > len(
        piece.translate(None, delete=bytes(range(128, 256)))
    )


def _transcoded(plain: BinaryIO, encoding: str, held: ExitStack) -> BinaryIO:
    plain.seek(0)
    decoder, spool = codecs.getincrementaldecoder(encoding)(), _spool(held)
    for piece in _pieces(plain):
        spool.write(decoder.decode(piece).encode())
    spool.write(decoder.decode(b"", final=True).encode())
    return spool
