"""The product with one rule of its commits broken, in each way that a person might break it."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from datalake_assets.core.manifest import Decision, Manifest, Seen, decide
from datalake_assets.core.position import OffsetsPosition
from datalake_assets.errors import (
    AmbiguousWrite,
    CorruptLake,
    LakeError,
    PreconditionFailed,
    TransientStoreError,
    UploadGone,
)
from datalake_assets.lake import commit, compaction
from datalake_assets.lake.commit import Change, Loaded, PartitionLog, Planned
from datalake_assets.lake.store.swap import known_object
from datalake_assets_tests.lake.simulated_store import Faults, SimulatedStore


def no_cas(patch):
    """The manifest is written whatever is there."""

    def swap(self, loaded, manifest):
        stamped = manifest.stamped(self._new_id())
        return Loaded(self._store.put(self.manifest_key, stamped.to_bytes()), stamped)

    patch.setattr(PartitionLog, "_swap", swap)


def sweep_before_commit(patch):
    """What a commit replaces is deleted before it is committed."""
    swap = PartitionLog._swap

    def sweep_and_swap(self, loaded, manifest):
        if manifest.generation > loaded.manifest.generation:
            self._store.delete(self.key_of(each.name) for each in manifest.garbage)
        return swap(self, loaded, manifest)

    patch.setattr(PartitionLog, "_swap", sweep_and_swap)


def ignore_position(patch):
    """Rows that are in the lake are landed again, and so are rows that another landed meanwhile."""
    patch.setattr(OffsetsPosition, "admits", lambda *_: True)


def no_input_check(patch):
    """A compaction goes ahead though another writer removed one of its inputs."""
    _plan_instead(patch, lambda _plan, inputs, _base: Planned(remove=inputs))
    patch.setattr(Manifest, "prepared", lambda self, pending: replace(self, pending=pending))


def inputs_that_are_left(patch):
    """A compaction replaces those of its inputs that are still there, with the rows of all."""

    def plan(_plan, inputs, base):
        return Planned(remove=tuple(name for name in inputs if name in {file.name for file in base.files}))

    _plan_instead(patch, plan)


def inputs_are_checked_once(patch):
    """A compaction looks for its inputs on the first base that it is tried on, and not after it was overtaken."""
    planned = {}

    def plan(plan, inputs, base):
        if inputs not in planned:
            planned[inputs] = plan(base)
        return planned[inputs]

    _plan_instead(patch, plan)
    patch.setattr(Manifest, "prepared", lambda self, pending: replace(self, pending=pending))


def more_than_the_inputs(patch):
    """A compaction replaces all files of the base, also those that were appended meanwhile."""

    def plan(plan, _inputs, base):
        return replace(plan(base), remove=tuple(file.name for file in base.files))

    _plan_instead(patch, plan)


def fewer_than_the_inputs(patch):
    """A compaction leaves one of its inputs in place."""
    _plan_instead(patch, lambda plan, _inputs, base: replace(plan(base), remove=plan(base).remove[1:]))


def position_as_read(patch):
    """A compaction that was overtaken by an append sets the position back to where it was before."""
    positions = {}

    def plan(plan, inputs, base):
        return replace(plan(base), position=positions.setdefault(inputs, base.position))

    _plan_instead(patch, plan)


def inputs_deleted_before_the_commit(patch):
    """A compactor deletes its inputs itself, as soon as their rows are staged."""
    commit_work = compaction.Compaction._commit

    def delete_and_commit(self, work):
        self._folder.data_store.delete(self._log.key_of(file.name) for file in work.group.files)
        commit_work(self, work)

    patch.setattr(compaction.Compaction, "_commit", delete_and_commit)


def inputs_deleted_after_the_commit(patch):
    """A compactor deletes its inputs itself, whatever became of its commit."""
    commit_work = compaction.Compaction._commit

    def commit_and_delete(self, work):
        commit_work(self, work)
        self._folder.data_store.delete(self._log.key_of(file.name) for file in work.group.files)

    patch.setattr(compaction.Compaction, "_commit", commit_and_delete)


def _plan_instead(patch, plan):
    """The product's compactions are planned by ``plan``, of the product's plan, its inputs' names, and the base."""

    def change(commit_id, kind, files, product, run_id):
        inputs = tuple(inspect.getclosurevars(product).nonlocals["inputs"])
        return Change(commit_id, kind, files, lambda base: plan(product, inputs, base), run_id)

    patch.setattr(compaction, "Change", change)


def publish_before_prepare(patch):
    """Files become visible before the manifest knows of them."""
    attempt = PartitionLog._attempt

    def publish_and_attempt(self, change, base=None):
        for staged, _ in change.files:
            with contextlib.suppress(LakeError):
                self._store.publish(staged)
        return attempt(self, change, base)

    patch.setattr(PartitionLog, "_attempt", publish_and_attempt)


def transient_is_published(patch):
    """A publish that failed for now counts as done."""
    _decide_instead(patch, Decision.FORWARD)


def transient_is_lost(patch):
    """A publish that failed for now counts as failed for good."""
    _decide_instead(patch, Decision.BACK)


def _decide_instead(patch, instead):
    def decide_at_once(seen):
        decision = decide(seen)
        return instead if decision is Decision.WAIT else decision

    patch.setattr(commit, "decide", decide_at_once)


def commit_id_settles(patch):
    """A write whose answer was lost is settled by the commit's id, which prepare and commit share."""

    def named(body: bytes) -> str:
        manifest = Manifest.from_bytes(body, where="mutant")
        if manifest.pending is not None:
            return manifest.pending.commit_id
        return manifest.history[-1].commit_id if manifest.history else ""

    def swap(store, key, body, *, etag):
        try:
            return store.create(key, body) if etag is None else store.swap(key, body, etag=etag)
        except AmbiguousWrite:
            found = known_object(store, key)
            if found.body is None or named(found.body) != named(body):
                raise PreconditionFailed(key) from None
            return found.etag

    patch.setattr(commit, "swap_object", swap)


def look_at_object_before_upload(patch):
    """After an attempt to publish, the object is looked for first: between the two looks, it may be published."""

    def publish(self, item):
        staged = self._staged(item)
        failed, refused = _try_to_publish(self._store, staged)
        info = self._store.head(staged.key)
        staged_there = failed and self._store.has_staged(staged)
        return Seen(staged=staged_there, published=info is not None, refused=refused), item.file

    patch.setattr(PartitionLog, "_publish", publish)


def leave_the_staged_name(patch):
    """A file that is visible counts as published, though its staged name is there for a zombie to link again."""

    def publish(self, item):
        staged = self._staged(item)
        failed, refused = _try_to_publish(self._store, staged)
        staged_there = failed and self._store.has_staged(staged)
        info = self._store.head(staged.key)
        return Seen(staged=staged_there, published=info is not None, refused=refused), item.file

    patch.setattr(PartitionLog, "_publish", publish)


def _try_to_publish(store, staged):
    """Whether it failed, and whether it was refused for good."""
    try:
        store.publish(staged)
    except CorruptLake:
        return True, True
    except (UploadGone, AmbiguousWrite, TransientStoreError):
        return True, False
    return False, False


def no_abort_confirmation(patch):
    """A commit is undone though some of its staged files may still be there, for a zombie to publish."""

    def abort(self, pending):
        for item in pending.publish:
            with contextlib.suppress(LakeError):
                self._store.discard_staged(self._staged(item))

    patch.setattr(PartitionLog, "_abort", abort)


def undone_files_are_forgotten(patch):
    """A commit is undone, and what became visible of it stays."""
    patch.setattr(Manifest, "rolled_back", lambda self: replace(self, pending=None))


def unacknowledged_is_swept(patch):
    """Garbage is forgotten though its deletion may have failed."""
    delete = SimulatedStore.delete

    def delete_somehow(self, keys):
        with contextlib.suppress(LakeError):
            delete(self, keys)

    patch.setattr(SimulatedStore, "delete", delete_somehow)


def no_sync(patch):
    """A local commit names files whose names a power cut may take away."""
    patch.setattr(SimulatedStore, "sync", lambda *_: None)


Mutant = Callable[[pytest.MonkeyPatch], None]
MUTANTS: tuple[Mutant, ...] = (
    no_cas,
    sweep_before_commit,
    ignore_position,
    no_input_check,
    inputs_that_are_left,
    inputs_are_checked_once,
    more_than_the_inputs,
    fewer_than_the_inputs,
    position_as_read,
    inputs_deleted_before_the_commit,
    inputs_deleted_after_the_commit,
    publish_before_prepare,
    transient_is_published,
    commit_id_settles,
    look_at_object_before_upload,
    no_abort_confirmation,
    transient_is_lost,
    leave_the_staged_name,
    undone_files_are_forgotten,
    unacknowledged_is_swept,
    no_sync,
)
# where a rule rarely matters, the weather in which it does
WEATHER: dict[Mutant, dict[str, Any]] = {
    look_at_object_before_upload: {"local": False, "faults": Faults(busy=0.1, late=0.5)},
    no_abort_confirmation: {"local": False, "faults": Faults(busy=0.1, late=0.4, refused=0.2)},
    leave_the_staged_name: {"local": True, "faults": Faults(busy=0.3)},
    no_sync: {"local": True},
}
