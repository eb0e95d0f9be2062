"""One group's rewrite as a piece of work for any process: it reads, stages and says what it found, and commits nothing.

A job is plain data, which names files and carries none; the store goes along as its address, without credentials. Each
attempt at it stages under names of its own. So one that is lost, doubled, or goes on though nobody waits for it leaves
at most what nobody commits, which is swept by its age.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime

import msgspec

from datalake_assets.core.files import DataFile, data_file_name
from datalake_assets.core.values import Value
from datalake_assets.engines.base import Cancelled, Progress
from datalake_assets.errors import CorruptLake, DatalakeError, EngineError, ObjectNotFound, unforeseen_text
from datalake_assets.lake.compaction_inputs import AHEAD_BYTES, Inputs
from datalake_assets.lake.store import PortableStore
from datalake_assets.lake.store.base import StagedFile, StagedWriter, Store
from datalake_assets.parquet.decodable import ROW_GROUPS_HELD
from datalake_assets.parquet.inputs import Input
from datalake_assets.parquet.outputs import Opener
from datalake_assets.parquet.rewrite import Rewritten, rewrite
from datalake_assets.parquet.rewrite_settings import RewriteSettings
from datalake_assets.tracing import span

__all__ = ["RewriteJob", "RewriteResult", "check_shared", "staging_opener"]

logger = logging.getLogger(__name__)


class RewriteResult(Value, frozen=True):
    """What came of a group.

    Attributes:
        done: Its outputs, which are staged, and what was left out; None if a file is gone: somebody else merged it.
        failed: Names of the files at which the merge failed for a reason that nobody foresaw.
        checksums: By name, of files of an adopted folder that were read; see `Inputs`.
    """

    done: Rewritten[StagedFile] | None
    failed: frozenset[str] = frozenset()
    checksums: Mapping[str, str] = msgspec.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RewriteJob:
    """The rewrite of one group.

    Attributes:
        store: Where its files are, and outputs are staged.
        folder: Folder of the partition's data files.
        files: The inputs in time order, with what they are known by: a file counts only if it is that one.
        keys: Their keys, in the same order.
        settings: How they are rewritten.
        commit_id: Of the commit that the outputs are for.
        metadata: Key-values of the outputs' footers.
        at: The time in the outputs' names.
        new_id: Gives the unique rest of each name.
        adopted: As for `Inputs`; so are the next two.
        may_copy: The store may copy row groups.
        made: Names of the inputs that this compaction has made itself.
    """

    store: PortableStore
    folder: str
    files: tuple[DataFile, ...]
    keys: tuple[str, ...]
    settings: RewriteSettings
    commit_id: str
    metadata: Mapping[str, str]
    at: datetime
    new_id: Callable[[], str]
    adopted: bool = False
    may_copy: bool = False
    made: frozenset[str] = frozenset()

    @property
    def size_bytes(self) -> int:
        """Bytes of the inputs."""
        return sum(file.size_bytes for file in self.files)

    @property
    def memory_bytes(self) -> int:
        """What the rewrite holds at the most: row groups in each thread, and what is fetched ahead."""
        row_groups = ROW_GROUPS_HELD * (self.settings.workers + 1) * self.settings.parquet.row_group_bytes
        return row_groups + min(AHEAD_BYTES, self.size_bytes)

    def run(self, progress: Progress) -> RewriteResult:
        """Rewrites the group; where that fails for a reason in the files, names those.

        Args:
            progress: Told the input bytes done so far.

        Raises:
            DatalakeError: The store failed; nothing stays staged.
            Cancelled: By ``progress``; likewise.
        """
        reached = 0

        def advance(done_bytes: int) -> None:
            nonlocal reached
            reached = max(reached, done_bytes)
            progress(reached)

        checksums: dict[str, str] = {}
        try:
            return RewriteResult(self._rewritten(self.files, self.keys, advance, checksums), checksums=checksums)
        except ObjectNotFound as error:
            logger.info("a file of %s is gone, merged by somebody else: %s", self.folder, error)
            return RewriteResult(None)
        except Exception as error:
            if not _is_of_files(error):
                raise
            logger.exception("a merge in %s failed; its files are tried one by one", self.folder)
            culprits = self._culprits(error, lambda _: progress(reached))
            return RewriteResult(Rewritten(rejected=culprits), frozenset(culprits), checksums)

    def discard(self, done: Rewritten[StagedFile] | None) -> None:
        """Drops outputs that nobody commits."""
        for staged, _ in done.outputs if done is not None else ():
            self.store.store.discard_staged(staged)

    def _rewritten(
        self, files: Sequence[DataFile], keys: Sequence[str], on_progress: Progress, checksums: dict[str, str]
    ) -> Rewritten[StagedFile]:
        inputs = Inputs(
            self.store.store,
            dict(zip((file.name for file in files), keys, strict=True)).__getitem__,
            files,
            adopted=self.adopted,
            may_copy=self.may_copy,
            made=self.made,
            merged_bytes=self.settings.parquet.row_group_bytes if self.settings.kernel == "reencode" else 0,
        )
        with closing(inputs), span("rewrite", files=len(files)):
            done = rewrite(
                self._given(inputs), self.settings, self._opener(), metadata=self.metadata, on_progress=on_progress
            )
        checksums.update(inputs.checksums)
        return done

    def _opener(self) -> Opener[StagedFile]:
        return staging_opener(self.store.store, self.folder, prefix="compacted", at=self.at, new_id=self.new_id)

    def _given(self, inputs: Inputs) -> Sequence[Input]:
        return inputs.files

    def _culprits(self, error: Exception, go_on: Progress) -> dict[str, str]:
        """The files of a group that failed which fail alone, too, with the reason; all if it takes several to fail."""
        found = {}
        for file, key in zip(self.files, self.keys, strict=True):
            try:
                done = self._rewritten([file], [key], go_on, {})
            except Exception as alone:
                if not _is_of_files(alone):
                    raise
                found[file.name] = _failure_text(alone)
            else:
                self.discard(done)
        return found or dict.fromkeys(
            (file.name for file in self.files), f"not merged together: {_failure_text(error)}"
        )


def check_shared(job: RewriteJob, result: RewriteResult, *, engine: str, worker: str) -> None:
    """Sees to it that a worker elsewhere worked in the same lake, and not in a folder of its own by that name.

    Raises:
        EngineError: What it missed is there, or what it staged is not.
    """
    store = job.store.store
    if result.done is None:
        if any(store.head(key) is None for key in job.keys):
            return
    elif "://" in store.uri or all(store.has_staged(staged) for staged, _ in result.done.outputs):
        return
    raise EngineError(
        engine,
        f"the worker {worker} does not see {store.uri} as this process does",
        cure="mount a lake's folder on every node at the same path, or keep the lake in S3",
    )


def staging_opener(
    store: Store, folder: str, *, prefix: str, at: datetime, new_id: Callable[[], str]
) -> Opener[StagedFile]:
    """Where files of a partition that are written anew are staged.

    Args:
        store: Of the data files.
        folder: The partition's.
        prefix: Begins the names.
        at: The time in the names.
        new_id: Gives the unique rest of each.
    """

    def open_output() -> StagedWriter:
        return store.stage(f"{folder}/{data_file_name(prefix, at, new_id())}")

    is_local = "://" not in store.uri
    return Opener(
        open_output,
        store.discard_staged,
        store.read_staged,
        where=folder,
        block_bytes=(1 if is_local else 8) << 20,
        is_read_back=is_local,
    )


def _is_of_files(error: Exception) -> bool:
    """Whether an error of a rewrite comes from what is in the files, and not from where they are or are written."""
    return not isinstance(error, (DatalakeError, Cancelled)) or isinstance(error, CorruptLake)


def _failure_text(error: Exception) -> str:
    return str(error) if isinstance(error, DatalakeError) else unforeseen_text(error)
