"""A Delta table that others write, as a table of the lake; the ``deltalake`` library does its own optimize and vacuum.

Which partitions are due, the plan of all tables says. What is done to them is Delta's: an ``OPTIMIZE`` of one
partition, which its log takes only if no input has left, and a ``VACUUM`` by the table's own retention. A partition is
what Hive would call it, ``day=2026-01-01``; "." is a table without partitions. Its owner's marker lies beside its
folder, as that of an adopted folder does.
"""

from __future__ import annotations

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, WriterProperties
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from datalake_assets.core.compaction.plan import CompactionRules
from datalake_assets.core.facts import Expired
from datalake_assets.errors import CommitConflict, ConfigError, CorruptLake
from datalake_assets.lake.adopted.delta_look import COMMIT, DeltaLook, MergedFiles, failure
from datalake_assets.lake.adopted.delta_rows import line_of
from datalake_assets.lake.adopted.logged_table import LoggedTable, Merged
from datalake_assets.lake.adopted.owners import check_ownership
from datalake_assets.lake.layout import address_of, folder_store
from datalake_assets.lake.store.s3_access import S3Access
from datalake_assets.lake.table import Logged

__all__ = ["AdoptedDelta"]

#: Files that are read at once by an optimize, and the times that its commit is tried beside those of others.
THREADS, ATTEMPTS = 2, 15


def _storage_options(s3: S3Access) -> dict[str, str]:
    """How the library reaches S3; what is not given, it takes by the AWS conventions, as we do."""
    known = {
        "AWS_ENDPOINT_URL": s3.endpoint,
        "AWS_REGION": s3.region,
        "AWS_PROFILE": s3.profile,
        "AWS_ACCESS_KEY_ID": s3.access_key,
        "AWS_SECRET_ACCESS_KEY": s3.secret_key,
        "AWS_SESSION_TOKEN": s3.session_token,
        "AWS_ALLOW_HTTP": "true" if (s3.endpoint or "").startswith("http://") else None,
    }
    return {name: value for name, value in known.items() if value is not None}


class AdoptedDelta(LoggedTable[DeltaLook]):
    """An adopted Delta table; implements `LakeTable`."""

    def take_look(self) -> DeltaLook:
        """Implements `LoggedTable`."""
        address = address_of(self.feed)
        try:
            return DeltaLook(self._loaded(), folder_store(self._folder.store, address.root), address.name, self.feed)
        except DeltaError as error:
            raise failure(self.feed, error) from error

    def _loaded(self) -> DeltaTable:
        """The table as it is now; each its own, since a commit moves it on."""
        store, uri = self._folder.store, address_of(self.feed).uri
        try:
            return DeltaTable(uri, storage_options=_storage_options(store.s3) if "://" in uri else None)
        except TableNotFoundError as error:
            raise ConfigError(f"there is no Delta table at {uri}") from error
        except DeltaError as error:
            raise failure(self.feed, error) from error

    def logged(self) -> Logged | None:
        """Implements `TellsItsLog`."""
        return self.take_look().logged(address_of(self.feed).uri)

    def merged(self, look: DeltaLook, key: str, rules: CompactionRules) -> Merged:
        """Implements `LoggedTable`: one ``OPTIMIZE`` of the partition, by the library."""
        check_ownership(self._folder.store, self.feed)
        done = self._optimized(look, key, rules)
        return Merged(len(done.removed), done.rows, "reencode" if done.removed else "")

    def _optimized(self, look: DeltaLook, key: str, rules: CompactionRules) -> MergedFiles:
        table, commit_id = self._loaded(), self._folder.new_id()
        try:
            table.optimize.compact(
                partition_filters=look.filters(key),
                target_size=rules.target_file_bytes,
                max_concurrent_tasks=THREADS,
                writer_properties=WriterProperties(
                    compression="ZSTD" if self.feed.format.compression == "zstd" else "SNAPPY"
                ),
                commit_properties=CommitProperties(custom_metadata={COMMIT: commit_id}, max_commit_retries=ATTEMPTS),
            )
        except CommitFailedError as error:
            raise CommitConflict(self.feed.source.where, f"another writer came first ({line_of(error)})") from error
        except DeltaError as error:
            raise failure(self.feed, error) from error
        return self._checked(look, key, commit_id)

    def _checked(self, look: DeltaLook, key: str, commit_id: str) -> MergedFiles:
        """What the commit did, by the table's log and by the footers of its files: as many rows, of that partition.

        With ``verify: full`` their values are compared, too, by Arrow, which has no part in the library.

        Raises:
            CorruptLake: It is not so. The version before is there, and can be restored.
        """
        try:
            merged = look.commit_of(commit_id)
            is_compared = merged is not None and self.feed.compaction.verify == "full"
            is_same = merged is None or not is_compared or look.has_same_values(merged)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise CorruptLake(
                self.feed.source.where, f"what deltalake wrote cannot be read: {line_of(error)}"
            ) from error
        if merged is None:
            return MergedFiles()
        is_right = is_same and not merged.keys - {key} and merged.rows == merged.rows_removed
        if merged.why_changed or not is_right:
            others = "" if is_same else ", of other values"
            written = f"deltalake wrote {merged.rows} rows in place of {merged.rows_removed}{others}"
            reason = merged.why_changed or f"{written}, in {sorted(merged.keys)}"
            cure = f"restore version {merged.version - 1} of the table, and report it"
            raise CorruptLake(self.feed.source.where, reason, cure=cure)
        return merged

    def expire(self, *, all_past: bool = False) -> Expired:  # noqa: ARG002  never sooner than the table says
        """Implements `LakeTable`: ``VACUUM`` of files that the log let go of, by the table's own retention, or a week.

        Files that no log ever named stay: a commit of another writer may be about to name them.
        """
        if self.take_look().why_not_compacted:
            return Expired()
        check_ownership(self._folder.store, self.feed)
        table = self._loaded()
        try:
            if not table.vacuum(dry_run=True, full=False):
                return Expired()  # even one that finds nothing is two commits
            gone = table.vacuum(dry_run=False, full=False)
        except DeltaError as error:
            raise failure(self.feed, error) from error
        return Expired(files=len(gone))
