"""The bytes of manifests: those that they have had ever since, however they are made.

A partition of a hundred thousand files has a manifest of 25 MB, which each commit writes three times: so msgspec writes
and reads what it can, and ``json`` the rest.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Protocol, TypeVar

import msgspec

from datalake_assets.core.files import DataFile
from datalake_assets.errors import CorruptLake

__all__ = ["FORMAT", "decoded_manifest", "manifest_bytes"]

#: Version of the manifest's JSON layout.
FORMAT = 1

#: A time in UTC as msgspec writes it; within a text, quotes are preceded by a backslash.
_IN_UTC = re.compile(rb'("(?:min_time|max_time|written_at|at)":"[0-9T:.-]+)Z"')
_WRITTEN_AT = re.compile(rb'("written_at":"[0-9T:.-]+)Z"')
_NO_FILES = b'"files":[],"pending":'


def manifest_bytes(document: msgspec.Struct, files: tuple[DataFile, ...]) -> bytes:
    """A manifest's JSON: by msgspec where that gives the same as ``json``, which takes several times as long.

    Only ``json`` knows of names that are no Unicode, and writes the others in ASCII.

    Args:
        document: The manifest, with a field ``files`` that is empty and is followed by ``pending``.
        files: Its files.
    """
    try:
        body, of_files = msgspec.json.encode(document), msgspec.json.encode(files)
    except (UnicodeEncodeError, OverflowError):
        pass
    else:
        if all(each.isascii() and b"\x7f" not in each for each in (body, of_files)):
            # nothing but a time stands before these fields of a file, and `replace` is faster than a pattern
            for name in (b"max_time", b"checksum"):
                of_files = of_files.replace(b'Z","%b":' % name, b'+00:00","%b":' % name)
            begin, _, end = _IN_UTC.sub(rb'\1+00:00"', body).partition(_NO_FILES)
            return b"".join((begin, b'"files":', _WRITTEN_AT.sub(rb'\1+00:00"', of_files), b',"pending":', end))
    plain = msgspec.to_builtins(msgspec.structs.replace(document, files=files), builtin_types=(datetime,))
    return json.dumps(plain, separators=(",", ":"), default=datetime.isoformat).encode()


class _HasFormat(Protocol):
    @property
    def format(self) -> int: ...


_DocumentT = TypeVar("_DocumentT", bound=_HasFormat)


def decoded_manifest(body: bytes, decoder: msgspec.json.Decoder[_DocumentT], where: str) -> _DocumentT:
    """What a manifest says.

    Args:
        body: Its JSON.
        decoder: Of what is wanted of it, with a field ``format``.
        where: The object's key, for errors.

    Raises:
        CorruptLake: It is not a manifest, or one of a later format.
    """
    try:
        document = decoder.decode(body)
    except msgspec.MsgspecError:
        return _decoded_slowly(body, decoder.type, where)
    if document.format != FORMAT:
        raise _later_format(where, document.format)
    return document


def _decoded_slowly(body: bytes, kind: type[_DocumentT], where: str) -> _DocumentT:
    """What msgspec refuses: names that are no Unicode, which are read, and what is not a manifest, with the reason."""
    try:
        plain = json.loads(body)
        if isinstance(plain, dict) and plain.get("format", FORMAT) != FORMAT:
            raise _later_format(where, plain["format"])
        return msgspec.convert(plain, kind)
    except ValueError as error:
        raise CorruptLake(where, f"not a manifest: {error}") from error


def _later_format(where: str, written: object) -> CorruptLake:
    return CorruptLake(where, f"manifest of format {written}", cure="use a newer release of this package")
