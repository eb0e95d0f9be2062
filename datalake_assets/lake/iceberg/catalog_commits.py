"""A commit to an Iceberg catalog: tried once, and settled by reading when its answer is lost, or cannot be believed.

A commit that may stand is never repeated blindly, nor taken for failed: its files would be deleted. A gateway may send
a request twice, so that the answer is a refusal of the second; a replica or a cache may show the table as it was
before the first. So a refusal counts once what is read shows why it was refused. A commit that moves a branch from
where it requires it to be can be sent again: it is made once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException, ValidationException
from pyiceberg.io import FileIO
from pyiceberg.table import Table, TableProperties
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.update import (
    AssertRefSnapshotId,
    AssertTableUUID,
    SetSnapshotRefUpdate,
    TableRequirement,
    TableUpdate,
)
from pyiceberg.utils.properties import property_as_bool
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_exponential

from datalake_assets.errors import AmbiguousWrite, CommitConflict, LakeError, TransientStoreError
from datalake_assets.lake.iceberg.database_catalogs import why_not_committed

__all__ = ["NEWEST_FORMAT", "check_format", "commit_updates", "delete_quietly", "table_text"]

logger = logging.getLogger(__name__)

#: Newest version of the format that pyiceberg writes manifests for. In version 3, rows have ids to keep.
NEWEST_FORMAT = 2
#: Seconds for which a catalog that refused a commit is asked again why, if it shows the table as it was before.
STALE_S = 3
#: How a catalog says that a commit is none, if nothing has come between.
_REFUSALS = (CommitFailedException, ValidationException)


def table_text(table: Table) -> str:
    """The table's name, for a person."""
    return ".".join(table.name())


def check_format(table: Table) -> None:
    """Refuses a table that nothing here can change; asked before anything is written.

    Raises:
        LakeError: Its format is too new.
    """
    version = table.metadata.format_version
    if version > NEWEST_FORMAT:
        reason = f"it has format version {version}; what is written here is version {NEWEST_FORMAT}"
        raise LakeError(table_text(table), reason, cure="write it with the engine that made it")


def commit_updates(
    table: Table,
    updates: Sequence[TableUpdate],
    requirements: Sequence[TableRequirement],
    *,
    is_there: Callable[[], bool],
) -> None:
    """Has the catalog apply updates if the requirements hold; once.

    Args:
        table: Knows the result afterwards.
        updates: What is to change.
        requirements: Besides that it is the same table.
        is_there: Whether the table, loaded again, has the change: it settles a lost answer.

    Raises:
        CommitConflict: A requirement does not hold; nothing was changed.
        AmbiguousWrite: The answer was lost, or contradicts what the catalog says of the table, which does not have the
            change (yet).
        TransientStoreError: The catalog's database, or its disk, could not take it; nothing was changed.
        LakeError: The table's format is too new.
    """
    check_format(table)
    before = table.metadata
    commit = _Commit(table, updates, (AssertTableUUID(uuid=before.table_uuid), *requirements), is_there)
    try:
        commit.sent()
    except _REFUSALS as error:
        if not commit.settled_refusal(requirements, error):
            raise CommitConflict(table_text(table), f"another writer came first ({_line(error)})") from error
    _delete_old_metadata(table, before)


class _Commit:
    """One commit, and what became of it.

    Args:
        table: Knows the result afterwards.
        updates: What is to change.
        requirements: What must hold for it.
        is_there: Whether the table, loaded again, has the change.
    """

    def __init__(
        self,
        table: Table,
        updates: Sequence[TableUpdate],
        requirements: Sequence[TableRequirement],
        is_there: Callable[[], bool],
    ) -> None:
        self._table, self._location, self._is_there = table, table.metadata_location, is_there
        self._updates, self._requirements = tuple(updates), tuple(requirements)

    def sent(self) -> None:
        """Sends it, once.

        Raises:
            CommitFailedException: The catalog refuses it, at least this time; or another one of `_REFUSALS`.
            AmbiguousWrite: It may stand.
            TransientStoreError: It does not stand: the catalog's database, or its disk, could not take it.
        """
        table = self._table
        try:
            response = table.catalog.commit_table(table, self._requirements, self._updates)
        except _REFUSALS:
            raise
        except Exception as error:
            if self._is_settled(error):
                return
            if reason := why_not_committed(table.catalog, error):
                raise TransientStoreError(table_text(table), f"{reason}; nothing was committed") from error
            raise AmbiguousWrite(table_text(table), f"the catalog's answer was lost ({_line(error)})") from error
        table.metadata, table.metadata_location = response.metadata, response.metadata_location
        late = AmbiguousWrite(table_text(table), "the catalog's answer lacks what it says it has committed")
        if not self._is_there() and not self._is_settled(late):
            raise late

    def settled_refusal(self, requirements: Sequence[TableRequirement], error: Exception) -> bool:
        """Whether it stands though it was refused: a gateway that sends a request twice gets that the second time.

        What is read has to show why it was refused. If it does not, it is of before (a replica's, a cache's), or the
        catalog was busy; which of these, it says itself when it is asked again, of a commit that cannot be made twice.
        """

        def look() -> bool | None:
            if self._is_settled(error):
                return True
            if not self._is_of_before(requirements):
                return False
            if self._is_made_once:
                with suppress(*_REFUSALS):
                    self.sent()
                    return True
            return None

        looks = Retrying(
            retry=retry_if_result(lambda found: found is None),
            stop=stop_after_delay(STALE_S),
            wait=wait_exponential(0.02, max=1),
            retry_error_callback=lambda _: None,
        )
        found: bool | None = looks(look)
        if found is None:
            reason = f"the catalog refused the commit, and shows the table as it was before ({_line(error)})"
            raise AmbiguousWrite(table_text(self._table), reason) from error
        return found

    @property
    def _is_made_once(self) -> bool:
        """Whether it moves a branch from where it requires it to be, so that a repetition of it is refused."""
        moved = {each.ref_name: each.snapshot_id for each in self._updates if isinstance(each, SetSnapshotRefUpdate)}
        return any(
            isinstance(each, AssertRefSnapshotId) and moved.get(each.ref, each.snapshot_id) != each.snapshot_id
            for each in self._requirements
        )

    def _is_of_before(self, requirements: Sequence[TableRequirement]) -> bool:
        """Whether nothing speaks against a commit that was refused, in a table that was loaded again."""
        table = self._table
        if isinstance(table.catalog, SqlCatalog) and table.metadata_location != self._location:
            return False  # a database is read as it is, and refuses whatever was built on other metadata
        try:
            for each in requirements:
                each.validate(table.metadata)
        except CommitFailedException:
            return False
        return bool(requirements)

    def _is_settled(self, error: Exception) -> bool:
        try:
            self._table.refresh()
        except Exception as unreachable:
            reason = f"the catalog's answer was lost ({_line(error)})"
            raise AmbiguousWrite(table_text(self._table), reason) from unreachable
        return self._is_there()


def delete_quietly(io: FileIO, paths: Iterable[str]) -> None:
    """Deletes files that nothing names; what is left over is an orphan, for later."""
    for path in paths:
        try:
            io.delete(path)
        except Exception as error:  # noqa: BLE001  each file system has errors of its own
            logger.warning("%s could not be deleted, and is left for the removal of orphans: %s", path, _line(error))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _delete_old_metadata(table: Table, before: TableMetadata) -> None:
    """Deletes metadata files that have left the log, where the table says so (Iceberg's table property)."""
    wanted = property_as_bool(
        table.metadata.properties,
        TableProperties.METADATA_DELETE_AFTER_COMMIT_ENABLED,
        TableProperties.METADATA_DELETE_AFTER_COMMIT_ENABLED_DEFAULT,
    )
    if wanted:
        kept = {entry.metadata_file for entry in table.metadata.metadata_log}
        delete_quietly(
            table.io, sorted({entry.metadata_file for entry in before.metadata_log} - kept - {table.metadata_location})
        )
