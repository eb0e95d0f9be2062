"""Files of Iceberg tables in local folders that are on the disk before anybody names them.

pyiceberg writes without fsync: after a power cut the catalog, which SQLite had made durable, could name a metadata file
that is empty. Here each file is synced as it is closed, and its folder after it, up to the first that was there before.
A catalog is told of this class by its properties, `DURABLE_FILES`.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

from pyiceberg.io import OutputStream
from pyiceberg.io.pyarrow import PyArrowFile, PyArrowFileIO

from datalake_assets.lake.store.posix import fsync_folder

__all__ = ["DURABLE_FILES", "DurableFileIO"]


class DurableFileIO(PyArrowFileIO):
    """pyiceberg's files; local ones are durable when they are closed."""

    def new_output(self, location: str) -> PyArrowFile:
        """A file to be written."""
        scheme, netloc, path = self.parse_location(location, self.properties)
        if scheme != "file":
            return super().new_output(location)
        return _LocalFile(location, path, self.fs_by_scheme(scheme, netloc))


class _LocalFile(PyArrowFile):
    """A local file to be written."""

    def create(self, overwrite: bool = False) -> OutputStream:  # noqa: FBT001, FBT002  pyiceberg's signature
        """Begins to write it.

        Raises:
            FileExistsError: It is there, and is not to be overwritten.
        """
        path = Path(self._path)
        made = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        for folder in made:
            fsync_folder(folder.parent)
        return _DurableStream(path, "wb" if overwrite else "xb")


class _DurableStream(io.BufferedWriter):
    """Is on the disk, name and all, once it is closed."""

    def __init__(self, path: Path, mode: str) -> None:
        self._folder = path.parent
        super().__init__(io.FileIO(path, mode), 1 << 20)

    def close(self) -> None:
        """Writes what is held, and syncs; idempotent."""
        if self.closed:
            return
        try:
            self.flush()
            os.fsync(self.fileno())
        finally:
            super().close()
        fsync_folder(self._folder)


#: Properties of a catalog whose tables lie in local folders.
DURABLE_FILES = {"py-io-impl": f"{DurableFileIO.__module__}.{DurableFileIO.__qualname__}"}
