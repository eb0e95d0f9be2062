"""A commit to an Iceberg catalog: tried once, and settled by reading when its answer is lost, or cannot be believed.

A commit that may stand is never repeated blindly, nor taken for failed: its files would be deleted. A gateway may send
a request twice, so that the answer is a refusal of the second; a replica or a cache may show the table as it was
before the first. So a refusal counts once what is read shows why it was refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException, ValidationException
from pyiceberg.io import FileIO
from pyiceberg.table import Table, TableProperties
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.update import AssertTableUUID, TableRequirement, TableUpdate
from pyiceberg.utils.properties import property_as_bool
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_exponential

from datalake_assets.errors import AmbiguousWrite, CommitConflict, LakeError

__all__ = ["NEWEST_FORMAT", "check_format", "commit_updates", "delete_quietly", "table_text"]

logger = logging.getLogger(__name__)

#: Newest version of the format that pyiceberg writes manifests for. In version 3, rows have ids to keep.
NEWEST_FORMAT = 2
#: Seconds for which a catalog that refused a commit is asked again why, if it shows the table as it was before.
STALE_S = 3


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
        LakeError: The table's format is too new.
    """
    check_format(table)
    before, location = table.metadata, table.metadata_location
    same_table = AssertTableUUID(uuid=before.table_uuid)
    try:
        response = table.catalog.commit_table(table, (same_table, *requirements), tuple(updates))
    except (CommitFailedException, ValidationException) as error:
        if not _settled_refusal(table, requirements, location, is_there, error):
            raise CommitConflict(table_text(table), f"another writer came first ({_line(error)})") from error
    except Exception as error:
        if not _settled(table, is_there, error):
            raise AmbiguousWrite(table_text(table), f"the catalog's answer was lost ({_line(error)})") from error
    else:
        table.metadata, table.metadata_location = response.metadata, response.metadata_location
        late = AmbiguousWrite(table_text(table), "the catalog's answer lacks what it says it has committed")
        if not is_there() and not _settled(table, is_there, late):
            raise late
    _delete_old_metadata(table, before)


def delete_quietly(io: FileIO, paths: Iterable[str]) -> None:
    """Deletes files that nothing names; what is left over is an orphan, for later."""
    for path in paths:
        try:
            io.delete(path)
        except Exception as error:  # noqa: BLE001  each file system has errors of its own
            logger.warning("%s could not be deleted, and is left for the removal of orphans: %s", path, _line(error))


def _settled_refusal(
    table: Table,
    requirements: Sequence[TableRequirement],
    location: str,
    is_there: Callable[[], bool],
    error: Exception,
) -> bool:
    """Whether a commit stands though it was refused: a gateway that sends a request twice gets that the second time.

    What is read has to show why it was refused. If it does not, it is of before (a replica's, a cache's), and whether
    the commit stands is known to nobody who reads that.
    """

    def look() -> bool | None:
        return _settled(table, is_there, error) or (None if _is_of_before(table, requirements, location) else False)

    looks = Retrying(
        retry=retry_if_result(lambda found: found is None),
        stop=stop_after_delay(STALE_S),
        wait=wait_exponential(0.02, max=1),
        retry_error_callback=lambda _: None,
    )
    found: bool | None = looks(look)
    if found is None:
        reason = f"the catalog refused the commit, and shows the table as it was before ({_line(error)})"
        raise AmbiguousWrite(table_text(table), reason) from error
    return found


def _is_of_before(table: Table, requirements: Sequence[TableRequirement], location: str) -> bool:
    """Whether nothing speaks against a commit that was refused, in a table that was loaded again."""
    if isinstance(table.catalog, SqlCatalog) and table.metadata_location != location:
        return False  # a database is read as it is, and refuses whatever was built on other metadata
    try:
        for each in requirements:
            each.validate(table.metadata)
    except CommitFailedException:
        return False
    return bool(requirements)


def _settled(table: Table, is_there: Callable[[], bool], error: Exception) -> bool:
    try:
        table.refresh()
    except Exception as unreachable:
        raise AmbiguousWrite(table_text(table), f"the catalog's answer was lost ({_line(error)})") from unreachable
    return is_there()


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
