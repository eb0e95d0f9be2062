"""The kernel's C interface as ctypes knows it: the structs of `pagemerge.h`, field by field, and the library's loading.

It changes with the header and nothing else does; `VERSION` has to be the header's `PM_VERSION`.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

from datalake_assets.native_library import library_of

__all__ = ["STEPS", "VERSION", "CChecked", "CInput", "COptions", "CResult", "CSpan", "CText", "open_library"]

#: Of the interface; a library of another one is not used.
VERSION = 4


class CInput(ctypes.Structure):
    """An input: `Part`."""

    _fields_ = (
        ("path", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("size_bytes", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("digest", ctypes.c_char_p),
        ("proven", ctypes.c_int32),
        ("descriptor", ctypes.c_int32),
        ("first_group", ctypes.c_int32),
        ("groups", ctypes.c_int32),
    )


class CText(ctypes.Structure):
    """A text; a size of -1: there is none."""

    _fields_ = (("data", ctypes.c_char_p), ("size_bytes", ctypes.c_int64))


class COptions(ctypes.Structure):
    """Options of a merge: `MergeOptions`."""

    _fields_ = (
        ("codec", ctypes.c_int32),
        ("level", ctypes.c_int32),
        ("page_bytes", ctypes.c_int64),
        ("page_rows", ctypes.c_int64),
        ("page_least_bytes", ctypes.c_int64),
        ("verify", ctypes.c_int32),
        ("copy", ctypes.c_int32),
        ("time_leaf", ctypes.c_int32),
        ("order", ctypes.c_int32),
        ("bloom", ctypes.c_int32),
        ("memory_bytes", ctypes.c_int64),
        ("created_by", ctypes.c_char_p),
        ("created_by_bytes", ctypes.c_int64),
        ("keys", ctypes.POINTER(CText)),
        ("values", ctypes.POINTER(CText)),
        ("key_values", ctypes.c_int64),
        ("cancelled", ctypes.c_void_p),
    )


#: Of a merge, each with its CPU seconds.
STEPS = ("read", "footer", "decode", "encode", "verify")
_REASON = ("reason", ctypes.c_char * 252)


class CResult(ctypes.Structure):
    """What came out of a merge: `Merged`, or a reason."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("size_bytes", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("time_min", ctypes.c_int64),
        ("time_max", ctypes.c_int64),
        ("has_times", ctypes.c_int32),
        ("unsorted", ctypes.c_int32),
        ("in_bytes", ctypes.c_int64),
        ("copied_bytes", ctypes.c_int64),
        ("copied_pages", ctypes.c_int64),
        ("encoded_pages", ctypes.c_int64),
        ("dropped_sorting", ctypes.c_int64),
        ("peak_bytes", ctypes.c_int64),
        *((f"{step}_s", ctypes.c_double) for step in STEPS),
        ("bad_input", ctypes.c_int32),
        _REASON,
    )


class CSpan(ctypes.Structure):
    """Where something lies in a file; a size of 0: it is not there."""

    _fields_ = (("offset", ctypes.c_int64), ("size_bytes", ctypes.c_int64))


class CChecked(ctypes.Structure):
    """What is known of a file: `Checked`, or a reason."""

    _fields_ = (
        ("code", ctypes.c_int32),
        _REASON,
        ("rows", ctypes.c_int64),
        ("row_groups", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("size_bytes", ctypes.c_int64),
        ("plain_bytes", ctypes.c_int64),
        ("largest_chunk_plain_bytes", ctypes.c_int64),
        ("largest_group_bytes", ctypes.c_int64),
        ("most_row_bytes", ctypes.c_int64),
        ("pages", ctypes.c_int64),
        ("checksums", ctypes.c_int64),
        ("schema_digest", ctypes.c_uint8 * 16),
        ("key_values_digest", ctypes.c_uint8 * 16),
        ("schema", CSpan),
        ("key_values", CSpan),
        ("created_by", CSpan),
        ("bloom_leaves", ctypes.c_uint64),
        ("codecs", ctypes.c_uint32),
        ("has_sorting", ctypes.c_int32),
        ("has_page_index", ctypes.c_int32),
        ("has_chunk_key_values", ctypes.c_int32),
        ("has_repeated", ctypes.c_int32),
        ("unstated_dictionary", ctypes.c_int32),
        ("has_times", ctypes.c_int32),
        ("time_min", ctypes.c_int64),
        ("time_max", ctypes.c_int64),
    )


def open_library(path: Path) -> ctypes.CDLL:
    """Loads the library.

    Raises:
        OSError: It does not load, or has another interface.
        AttributeError: It is another library.
    """
    library = library_of(path, "pm_version", VERSION)
    for name in ("pm_reads", "pm_writes"):
        getattr(library, name).restype = ctypes.c_uint32
    pointer = ctypes.c_void_p
    library.pm_merge.argtypes = (ctypes.c_int64, pointer, pointer, pointer)
    library.pm_check.argtypes = (ctypes.c_int64, pointer, ctypes.c_int32, ctypes.c_int32, ctypes.c_int64, pointer)
    library.pm_walk.argtypes = (ctypes.c_int64, pointer, ctypes.c_int64, pointer)
    library.pm_free.argtypes = (pointer,)
    library.pm_free.restype = None
    return library
