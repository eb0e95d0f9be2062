"""What a compaction would leave alone: found out by merging, and keeping nothing of it.

Whether a file can be merged shows in its footer, its pages and its values. A dry run that goes by manifests alone names
none of the files that the run then leaves alone. So it does what the run does, with outputs that go nowhere, as far as
is worth it; a terabyte is not read for a forecast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import fields, replace

from datalake_assets.core.compaction.plan import CompactionGroup, CompactionRequest
from datalake_assets.core.manifest import Manifest
from datalake_assets.engines import DEFAULT, open_engine
from datalake_assets.engines.base import Engine
from datalake_assets.lake.compaction import Compaction
from datalake_assets.lake.compaction_inputs import Inputs
from datalake_assets.lake.compaction_jobs import RewriteJob
from datalake_assets.lake.compaction_plans import plan_of
from datalake_assets.lake.feed_compaction import Rehearsed
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store.base import StagedFile, StagedSink
from datalake_assets.parquet.inputs import Input
from datalake_assets.parquet.outputs import Opener
from datalake_assets.parquet.rewrite import Rewritten
from datalake_assets.parquet.rewrite_settings import RewriteSettings

__all__ = ["rehearse"]

#: Plans made in a row; each is without the files at which the one before failed.
ROUNDS = 20


def rehearse(
    folder: FeedFolder,
    key: str,
    request: CompactionRequest,
    *,
    manifest: Manifest,
    most_bytes: int,
    excluded: Mapping[str, str] | None = None,
) -> Rehearsed:
    """Plans the compaction of a partition and tries it; does `Rehearses.rehearse`'s work.

    Args:
        folder: The feed.
        key: The partition.
        request: What is asked for.
        manifest: The partition, as a compaction would find it.
        most_bytes: Bytes of files that are tried at the most.
        excluded: Files that must stay, by name, with the reason.
    """
    return _Rehearsal(folder, key, request, "", None, excluded=excluded).run_without_trace(manifest, most_bytes)


class _Nowhere(StagedSink):
    """Takes what is written, and keeps its size."""

    def _append(self, data: memoryview) -> None:
        """Nothing is kept."""

    def _seal(self) -> StagedFile:
        return StagedFile(self.key, self._size_bytes, "")

    def _drop(self) -> None:
        """Nothing is there."""


class _Rehearsal(Compaction):
    def run_without_trace(self, manifest: Manifest, most_bytes: int) -> Rehearsed:
        tried: list[frozenset[str]] = []
        tried_bytes = 0
        for _ in range(ROUNDS):
            plan = plan_of(self._folder, self._key, manifest, self._rules, self._tally.excluded)
            open_groups = [group for group in plan.groups if not any(_names(group) <= each for each in tried)]
            now: list[CompactionGroup] = []
            for group in open_groups:
                if tried_bytes + group.size_bytes <= most_bytes:
                    tried_bytes += group.size_bytes
                    now.append(group)
            if not now:
                break
            with closing(self._rewritten(now, manifest)) as rewritten:
                for work in rewritten:
                    tried.append(_names(work.group))
                    if work.done is not None:
                        self._learn(work.done)
        untried_bytes = sum(group.size_bytes for group in open_groups)
        return Rehearsed(plan, tried_bytes, untried_bytes)

    def _learn(self, done: Rewritten[StagedFile]) -> None:
        self._tally.excluded |= done.rejected
        if done.outputs and (reason := done.gains_nothing):
            self._tally.excluded |= dict.fromkeys(done.rewritten, reason)

    def _engine(self) -> Engine:
        return open_engine(DEFAULT)  # outputs that go nowhere cannot be sent back

    def _job(self, group: CompactionGroup, manifest: Manifest, settings: RewriteSettings) -> RewriteJob:
        job = super()._job(group, manifest, settings)
        return _RehearsedJob(**{each.name: getattr(job, each.name) for each in fields(job)})


class _RehearsedJob(RewriteJob):
    def _opener(self) -> Opener[StagedFile]:
        where = self.folder
        return Opener(lambda: _Nowhere(f"{where}/rehearsal"), _forget, _forget, where=where, block_bytes=1 << 20)

    def _given(self, inputs: Inputs) -> Sequence[Input]:
        return [replace(each, copy_source=None) for each in inputs.files]

    def discard(self, done: Rewritten[StagedFile] | None) -> None:
        """Nothing is there."""


def _forget(_: StagedFile) -> None:
    """Nothing is there to be dropped, or read."""


def _names(group: CompactionGroup) -> frozenset[str]:
    return frozenset(file.name for file in group.files)
