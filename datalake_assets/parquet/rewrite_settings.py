"""How files are rewritten: what whoever asks for it may choose, and what it takes."""

from __future__ import annotations

import os
from typing import Literal, TypeAlias

from datalake_assets.core.values import Value
from datalake_assets.parquet.decodable import ROW_BYTES, ROW_GROUPS_HELD
from datalake_assets.parquet.writer import ParquetSettings

__all__ = ["COPY_BYTES", "Kernel", "RewriteSettings", "Verify", "workers_for"]

Kernel: TypeAlias = Literal["auto", "concat", "reencode"]
Verify: TypeAlias = Literal["full", "pages", "rows"]


#: Mean size of row groups from which on copying them costs readers nothing measurable (`benchmarks compaction`).
COPY_BYTES = 4 << 20
#: Smaller ones are copied too if they are about as large as ours would be: uncompressed, of `row_group_bytes`.
AS_LARGE = 0.36


class RewriteSettings(Value, frozen=True):
    """How files are rewritten.

    Attributes:
        parquet: Codec, profile, target size and row-group size of what is made anew.
        kernel: ``auto`` copies row groups that are large enough, or as large as making them anew would make them;
            ``concat`` copies all, ``reencode`` none.
        verify: ``full`` compares every byte copied, and every value of what was made anew by a reader that had no part
            in it; ``pages`` leaves pages that were merged to the kernel that merged them; ``rows`` compares the numbers
            of rows.
        time_column: Rows are sorted by it within a row group, if it holds timestamps or dates.
        sort_by: Columns that rows are sorted by within each output; everything is encoded again.
        workers: Threads that make row groups.
        scratch: Folder for sorting; None: the system's.
        row_bytes: Decoded bytes of a row at the most: a file with a larger one is left out.
        copy_bytes: Mean size of a file's row groups from which on ``auto`` copies them; larger where each read takes a
            way to a store and back.
        as_large: Of the decoded bytes of a row group of ours, from which on they are copied, too.
    """

    parquet: ParquetSettings
    kernel: Kernel = "auto"
    verify: Verify = "full"
    time_column: str | None = None
    sort_by: tuple[str, ...] = ()
    workers: int = 2
    scratch: str | None = None
    row_bytes: int = ROW_BYTES
    copy_bytes: int = COPY_BYTES
    as_large: float = AS_LARGE

    @property
    def compares_bytes(self) -> bool:
        """Whether more than numbers of rows is compared."""
        return self.verify != "rows"

    @property
    def trusts_kernel(self) -> bool:
        """Whether it is enough that the native kernel decodes files that are copied and whose checksum nobody knows.

        What the kernel passes and Arrow does not decode would be lost to readers, with all that it is copied with.
        """
        return self.verify != "full"


def workers_for(memory_bytes: int, row_group_bytes: int) -> int:
    """How many threads that make row groups a memory budget allows on this machine; at least one."""
    return max(1, min(os.cpu_count() or 1, memory_bytes // (ROW_GROUPS_HELD * row_group_bytes)))
