"""What a feed knows beyond its partitions: where to read on, its schema, and a table's versions.

One small object per feed (``control/<kind>/<name>/feed.json``), changed by compare-and-swap. It saves work,
orders versions, and says of a feed that merges changes which of them were taken. The partitions' manifests alone decide
whether a row is in the lake.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import msgspec

from datalake_assets.core.partitions import version_key
from datalake_assets.core.position import Holes, Runs, SourcePartition, offset_to_json, partition_of
from datalake_assets.core.values import Value
from datalake_assets.errors import ConfigError, CorruptLake

__all__ = ["Conversion", "FeedState", "Version"]

#: Version of the JSON layout.
FORMAT = 1


class Version(msgspec.Struct, frozen=True):
    """A committed version of a table: its number, when its pull began, and its rows."""

    number: int
    as_of: datetime
    rows: int


class Conversion(msgspec.Struct, frozen=True, omit_defaults=True):
    """A conversion of a feed that is under way.

    Attributes:
        id: Names it.
        to: The type of the new form.
        folder: Where that lies in the lake.
        schema: The feed's columns in it, encoded; None if nothing was ever committed.
        is_cleared: Whether what may have lain there was deleted.
        is_given_up: Its rows are being deleted; then it is over.
    """

    id: str
    to: str
    folder: str
    schema: str | None
    is_cleared: bool = False
    is_given_up: bool = False


class FeedState(Value, frozen=True):
    """The state of one feed.

    Attributes:
        position_kind: ``offsets``, ``window``, ``snapshot`` or ``ids``; for life; None before the first commit.
        epoch: How often the source was recreated.
        hint: ``offsets``: first offset by source partition that may not be in the lake. Moves up only.
        watermark: ``window``: latest partition time up to which a pull saw all that had come. Moves up only.
        next_version: Number of the next version of a table; never reused.
        versions: Committed versions that are kept, in number order.
        removing: Versions that retention has removed and whose files may still be there.
        schema: The feed's schema, encoded; None before the first commit.
        rejected: Offsets below ``hint`` whose rows went to quarantine, by source partition: a partition whose position
            moves beyond them has not got them.
        deleted: Key of the file of deleted keys, of a feed that is merged by an order column; empty if there is none.
        form: What may be written, as `datalake_assets.lake.layout.form_of` says it; empty: whatever the feed is.
        conversion: One that is under way: nothing may be written.
        source_id: ``offsets``: names what numbers the rows of this epoch (`SourceBatch.source_id`); empty if unknown.
        write_id: Fresh for every write.
        born: The first write's, for life: a feed that was removed and added again has another. Empty of what earlier
            releases wrote.
    """

    position_kind: str | None = None
    epoch: int = 0
    hint: Mapping[SourcePartition, int] = msgspec.field(default_factory=dict)
    watermark: datetime | None = None
    next_version: int = 1
    versions: tuple[Version, ...] = ()
    removing: tuple[int, ...] = ()
    schema: str | None = None
    rejected: Mapping[SourcePartition, Holes] = msgspec.field(default_factory=dict)
    deleted: str = ""
    form: str = ""
    conversion: Conversion | None = None
    source_id: str = ""
    write_id: str = ""
    born: str = ""

    def goes_on_from(self, before: FeedState) -> bool:
        """Whether it is of the feed of which that one was, and not of one that has got its name since."""
        return not before.write_id or (bool(self.write_id) and self.born == before.born)

    def check_written(self, form: str, *, feed: str) -> None:
        """Refuses writers while a feed is converted, and those that know what it was before.

        Raises:
            ConfigError: This is one of them.
        """
        if self.conversion is not None:
            raise ConfigError(
                f"feed {feed!r} is being converted to {self.conversion.to}: nothing is written to it meanwhile;"
                f" 'datalake feeds convert {feed} --to {self.conversion.to}' goes on if that was interrupted"
            )
        if self.form not in {"", form}:
            raise ConfigError(
                f"feed {feed!r} was converted meanwhile; run it again. If it says so again, that was interrupted:"
                f" 'datalake feeds convert {feed} --to {self.form.partition(':')[0]}' ends it"
            )

    @property
    def current(self) -> Version | None:
        """The version that readers get: the one whose pull began last."""
        return max(self.versions, key=lambda version: (version.as_of, version.number), default=None)

    def with_kind(self, kind: str, *, feed: str) -> FeedState:
        """The state with the position kind fixed.

        Raises:
            ConfigError: The feed has another kind already.
        """
        if self.position_kind not in {None, kind}:
            was = self.position_kind
            raise ConfigError(f"feed {feed!r} was landed by {was!r}, not by {kind!r}; add a new feed for that")
        return replace(self, position_kind=kind)

    def with_hint(
        self,
        offsets: Mapping[SourcePartition, int],
        *,
        epoch: int,
        rejected: Mapping[SourcePartition, Runs] | None = None,
        source_id: str = "",
    ) -> FeedState:
        """The state with the hint moved up to ``offsets`` of ``epoch``; an older epoch's offsets change nothing.

        Args:
            offsets: Next offset wanted by source partition.
            epoch: Of all these offsets.
            rejected: Rows that went to quarantine on the way.
            source_id: What numbers them; empty if that is not known.
        """
        if epoch < self.epoch:
            return self
        base, aside = (self.hint, dict(self.rejected)) if epoch == self.epoch else ({}, {})
        merged = {key: max(base.get(key, 0), offsets.get(key, 0)) for key in {*base, *offsets}}
        for partition, runs in (rejected or {}).items():
            aside[partition] = aside.get(partition, Holes()).added(runs)
        known = source_id or (self.source_id if epoch == self.epoch else "")
        return replace(self, hint=merged, epoch=epoch, rejected=aside, source_id=known)

    def without_rejected(self, landed: Mapping[SourcePartition, Runs], *, epoch: int) -> FeedState:
        """The state without rejected rows that were landed after all."""
        if epoch != self.epoch:
            return self
        left = {partition: each.filled(landed.get(partition, ())) for partition, each in self.rejected.items()}
        return replace(self, rejected={partition: each for partition, each in left.items() if each != Holes()})

    def with_watermark(self, time: datetime | None) -> FeedState:
        """The state with the watermark moved up to ``time``."""
        if time is None or (self.watermark is not None and time <= self.watermark):
            return self
        return replace(self, watermark=time)

    def with_version(self, version: Version) -> FeedState:
        """The state with a committed version; to add it again changes nothing."""
        if any(kept.number == version.number for kept in self.versions) or version.number in self.removing:
            return self
        kept = sorted([*self.versions, version], key=lambda each: each.number)
        return replace(self, versions=tuple(kept), next_version=max(self.next_version, version.number + 1))

    def retained(self, *, versions: int, max_age: timedelta | None, now: datetime) -> FeedState:
        """The state with the versions beyond retention moved to ``removing``; the current one always stays."""
        by_age = sorted(self.versions, key=lambda each: (each.as_of, each.number), reverse=True)
        young = [each for each in by_age if max_age is None or now - each.as_of <= max_age] or by_age[:1]
        keep = {each.number for each in young[:versions]}
        gone = tuple(each.number for each in self.versions if each.number not in keep)
        if not gone:
            return self
        kept = tuple(each for each in self.versions if each.number in keep)
        return replace(self, versions=kept, removing=self.removing + gone)

    def without_removed(self, number: int) -> FeedState:
        """The state without a removed version, whose files are known to be gone."""
        return replace(self, removing=tuple(each for each in self.removing if each != number))

    @property
    def keys(self) -> tuple[str, ...]:
        """Partition keys of the kept versions, in number order."""
        return tuple(version_key(version.number) for version in self.versions)

    def to_bytes(self) -> bytes:
        """The JSON document, UTF-8."""
        document = _Document(
            format=FORMAT,
            write_id=self.write_id,
            position_kind=self.position_kind,
            epoch=self.epoch,
            hint={str(key): offset_to_json(each) for key, each in sorted(self.hint.items(), key=_in_order)},
            watermark=self.watermark,
            next_version=self.next_version,
            current_version=self.current.number if self.current else None,
            as_of=self.current.as_of if self.current else None,
            versions=self.versions,
            removing=self.removing,
            schema=self.schema,
            rejected={str(key): each.to_json() for key, each in sorted(self.rejected.items(), key=_in_order)},
            deleted=self.deleted,
            form=self.form,
            conversion=self.conversion,
            source_id=self.source_id,
            born=self.born,
        )
        plain = msgspec.to_builtins(document, builtin_types=(datetime,))
        return json.dumps(plain, indent=1, default=datetime.isoformat).encode()

    @classmethod
    def from_bytes(cls, body: bytes, *, where: str) -> FeedState:
        """The inverse of `to_bytes`.

        Raises:
            CorruptLake: It is not a feed state.
        """
        try:
            document = msgspec.json.decode(body, type=_Document)
            if document.format != FORMAT:
                raise CorruptLake(
                    where, f"feed's state of format {document.format}", cure="use a newer release of this package"
                )
            return cls(
                position_kind=document.position_kind,
                epoch=document.epoch,
                hint={partition_of(key): int(each) for key, each in document.hint.items()},
                watermark=document.watermark,
                next_version=document.next_version,
                versions=document.versions,
                removing=document.removing,
                schema=document.schema,
                rejected={partition_of(key): Holes.from_json(each) for key, each in document.rejected.items()},
                deleted=document.deleted,
                form=document.form,
                conversion=document.conversion,
                source_id=document.source_id,
                write_id=document.write_id,
                born=document.born,
            )
        except (ValueError, TypeError) as error:
            raise CorruptLake(where, f"not a feed's state: {error}") from error


class _Document(msgspec.Struct, frozen=True, omit_defaults=True):
    """A feed's state in JSON, in this order; the last six are only there if there are some."""

    format: int
    write_id: str
    position_kind: str | None
    epoch: int
    hint: dict[str, int | str]
    watermark: datetime | None
    next_version: int
    current_version: int | None
    as_of: datetime | None
    versions: tuple[Version, ...]
    removing: tuple[int, ...]
    schema: str | None
    rejected: dict[str, list[Any]] = msgspec.field(default_factory=dict)
    deleted: str = ""
    form: str = ""
    conversion: Conversion | None = None
    source_id: str = ""
    born: str = ""


def _in_order(each: tuple[SourcePartition, Any]) -> tuple[bool, SourcePartition]:
    """Numbers by their size, then names."""
    return isinstance(each[0], str), each[0]
