"""Arrow is asked whether it takes the metadata of many small files at once.

To open a small file takes Arrow half as long as others take to rewrite it: it makes a schema of the footer, and objects
of all columns. Small files of one writer state the same but for their row groups, so the comparer's library puts these
into one footer, as they stand. What Arrow takes of that, and of the first of the files, it takes of each. What cannot
be joined, or is refused together, is opened by itself.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from datalake_assets.parquet.chunk_checks import check_chunks
from datalake_assets.parquet.decoding import open_parquet
from datalake_assets.parquet.proof import Comparer, Joined

__all__ = ["all_open"]

#: What Arrow raises over damage.
_REFUSALS = (pa.ArrowException, OSError, ValueError, OverflowError)
#: Held while many files in memory are opened: several threads at it are no faster, and take a third more CPU, since
#: Python's lock goes to and fro.
_opening = threading.Lock()


def all_open(files: Sequence[pa.Buffer], comparer: Comparer) -> bool:
    """Whether Arrow takes the metadata of all of these files, which nobody vouches for, as if each were opened.

    Args:
        files: Their bytes.
        comparer: Joins their metadata.
    """
    with _opening:
        return all(_open_alike(joined, files) for joined in comparer.join(files))


def _open_alike(joined: Joined, files: Sequence[pa.Buffer]) -> bool:
    """Whether Arrow takes files that state the same."""
    first, *others = joined.files
    if not _opens(files[first]):
        return False
    return not others or _open_joined(joined, files) or all(_opens(files[number]) for number in others)


def _opens(file: pa.Buffer) -> bool:
    try:
        open_parquet(pa.BufferReader(file)).close()
    except _REFUSALS:
        return False
    return True


def _open_joined(joined: Joined, files: Sequence[pa.Buffer]) -> bool:
    """Whether Arrow takes the joined footer, finds the files' row groups in it, and takes each of its own schemas."""
    try:
        metadata = pq.read_metadata(pa.BufferReader(joined.data))
        # where chunks lie in each file was looked at
        check_chunks(metadata, max(files[number].size for number in joined.files))
        unlike = set(_unlike(joined.arrow_schemas)) - {joined.files[0]}
    except _REFUSALS:
        return False
    counts = iter([metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)])
    found = [sum(next(counts, 0) for _ in range(groups)) for groups in joined.row_groups]
    is_whole = found == joined.rows and next(counts, None) is None and metadata.num_rows == sum(found)
    return is_whole and all(_opens(files[number]) for number in unlike)


def _unlike(schemas: Mapping[int, pa.Buffer]) -> list[int]:
    """The files whose schemas of Arrow's say something that Arrow goes by, and none before did.

    Schemas' metadata are handed through; pandas notes numbers of rows there.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: One is damaged.
    """
    texts, known, unlike = set[bytes](), list[pa.Schema](), list[int]()
    for number, encoded in schemas.items():
        if (text := encoded.to_pybytes()) in texts:
            continue
        texts.add(text)
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text, validate=True))).remove_metadata()
        if not any(schema.equals(each, check_metadata=True) for each in known):
            known.append(schema)
            unlike.append(number)
    return unlike
