"""What a system is that rows come from, and what it declares, so that nothing else needs to know it by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from datalake_assets.core.values import Value
from datalake_assets.errors import ConfigError
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import SystemSource
from datalake_assets.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

    from datalake_assets.core.batches import (
        Backlog,
        Batches,
        EndlessBatches,
        LandedItems,
        News,
        ReadRequest,
        RejectedRow,
        SourceBatch,
    )

__all__ = [
    "BeginsAhead",
    "DecodesAgain",
    "DecodesItems",
    "FeedOption",
    "Follows",
    "HasBacklog",
    "SourceObject",
    "SourceSystem",
    "System",
    "TellsNews",
]


class SourceObject(Value, frozen=True):
    """Something at a source that could become a feed.

    Attributes:
        name: Its name at the source.
        kind: ``stream`` or ``table``.
        note: Why it cannot be landed, if it can't; empty otherwise.
    """

    name: str
    kind: str
    note: str = ""


class SourceSystem(Protocol):
    """A system that feeds are read from; holds connections, so close it."""

    def read(self, feed: Feed, request: ReadRequest) -> Batches:
        """Prepares to read ``feed``; nothing is read before the iteration."""

    def discover(self) -> Iterator[SourceObject]:
        """Lists what there is to land; nothing where the system cannot tell."""

    def check(self, feed: Feed) -> None:
        """Asks whether ``feed`` could be read.

        Raises:
            SourceError: It could not; says why.
        """

    def count(self, feed: Feed) -> int | None:
        """How many rows there are to read, from the first on; None where the system cannot tell without reading."""

    def close(self) -> None:
        """Closes its connections; idempotent."""


@runtime_checkable
class DecodesAgain(Protocol):
    """A system that can decode rows again which it once sent, and which went to quarantine as they were."""

    def decode(self, feed: Feed, raws: Sequence[bytes]) -> SourceBatch:
        """Decodes rows in the columns that a read of ``feed`` has now; those that still don't fit are rejected.

        Args:
            feed: The feed.
            raws: Rows as they were sent.

        Raises:
            SourceError: Its columns could not be asked for.
        """


@runtime_checkable
class DecodesItems(Protocol):
    """The same of a system without order, whose rows come with items."""

    def decode_items(self, feed: Feed, rows: Sequence[RejectedRow], schema: pa.Schema) -> Iterator[SourceBatch]:
        """Decodes rows again, as `datalake_assets.core.batches.DecodeItems` says.

        Args:
            feed: The feed as it is now.
            rows: Rows with an envelope, as `ItemOrigin` has it.
            schema: The lake's columns.

        Raises:
            InvalidFeed: What the feed says cannot be.
        """


@runtime_checkable
class Follows(Protocol):
    """A system that gives a stream's rows as they come; its model says so (``can_be_followed``)."""

    def follow(self, feed: Feed, request: ReadRequest) -> EndlessBatches:
        """Prepares to read ``feed`` on and on: as `SystemSource.read`, but beyond the end of what is there.

        It gives rows within a tenth of a second or so, and a batch without rows at least each half second, so that its
        reader can see to other things. It reads ahead only as far as its buffers go. It ends without an error where it
        has to begin anew from the position that was committed.

        Args:
            feed: A feed whose rows are numbered (positions ``offsets``).
            request: Where to begin; never a window.
        """


@runtime_checkable
class BeginsAhead(Protocol):
    """A system whose reads may end by silence, and are begun ahead; its model says so (``ends_by_silence``)."""

    def read_ahead(self, feed: Feed, request: ReadRequest, *, is_wanted: Callable[[], bool]) -> Batches:
        """Prepares to read ``feed`` as `SourceSystem.read` does, but so that an iteration may be told to end.

        Args:
            feed: A feed whose reads end by silence.
            request: What is read.
            is_wanted: Asked at least each half second while no row comes: False ends the iteration, with whatever was
                begun at the system. It needs not be asked while the system is asked for rows that are missing.
        """


@runtime_checkable
class HasBacklog(Protocol):
    """A system that can tell what waits to be read; its model says so (``has_backlog``)."""

    def backlog(self, feed: Feed) -> Backlog:
        """What waits for ``feed``.

        Raises:
            SourceError: It could not be asked.
        """


@runtime_checkable
class TellsNews(Protocol):
    """A system that can be looked at for new items; its model names the sensor that does (``news_sensor``)."""

    def news(self, feed: Feed, landed: LandedItems, cursor: str) -> News:
        """Looks once, at no more than a part of what there is; looks that follow each other see all of it.

        Args:
            feed: The feed.
            landed: What the lake has of it.
            cursor: What the last look gave; empty for the first.

        Raises:
            SourceError: It could not be asked.
        """


class FeedOption(Value, frozen=True):
    """An option of ``datalake feeds add`` that fills a field of a source's model.

    Attributes:
        flag: As it is typed, like ``--object``. Systems that share a flag share its shape.
        field: The model's field.
        help: What it says, in a sentence.
        metavar: What stands for its value in the help.
        choices: The values that there are; none for any.
        shape: ``text``; ``list``, separated by commas; or ``pairs``, an option for each, ``OLD=NEW``.
        required: Whether a feed needs it.
        streams_only: Whether it means nothing to a table.
    """

    flag: str
    field: str
    help: str
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    shape: Literal["text", "list", "pairs"] = "text"
    required: bool = False
    streams_only: bool = False

    def parsed(self, value: Any) -> Any:
        """The field's value from what was typed: a text, or of ``pairs`` several.

        Raises:
            ValueError: A pair is not written as one.
        """
        if self.shape == "list":
            return [part.strip() for part in value.split(",")]
        return dict(_pair(text) for text in value) if self.shape == "pairs" else value


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ValueError(f"{text!r} is not written as KEY=VALUE")
    return name, value


class System(Value, frozen=True):
    """A system's declaration; a line in `datalake_assets.sources.systems` makes it one of those that there are.

    Attributes:
        model: What a feed may say of it; declares kinds of feeds and of positions, and the default time column.
        connect: Connects by an installation's settings; asks nothing of the system yet. Raises `ConfigError` if the
            settings cannot work. Or its address, ``package.module:function``, where importing it takes long.
        settings: The installation's settings with the system's own, named ``<type>_…``.
        options: What ``feeds add`` offers for it.
        object_field: The model's field that takes the name of what `SourceSystem.discover` lists.
        discovery: What ``feeds add --from-<type>`` adds, in a sentence; empty if there is nothing to list.
        extra: The extra of our package that has what it imports; empty if it needs none.
    """

    model: type[SystemSource]
    connect: str | Callable[[Settings], SourceSystem]
    settings: type[Settings] = Settings
    options: tuple[FeedOption, ...] = ()
    object_field: str = "object"
    discovery: str = ""
    extra: str = ""

    def open(self, settings: Settings) -> SourceSystem:
        """Connects; close it.

        Raises:
            ConfigError: The settings cannot work, or what it needs is not installed.
        """
        try:
            found = resolve_name(self.connect) if isinstance(self.connect, str) else self.connect
        except ModuleNotFoundError as error:
            if not self.extra:
                raise
            missing = f"source {self.type!r}: {error.name} is not installed"
            raise ConfigError(f"{missing}; pip install 'datalake-assets[{self.extra}]'") from error
        opened: SourceSystem = found(settings)
        return opened

    @property
    def type(self) -> str:
        """The model's type, which feeds name."""
        return str(self.model.model_fields["type"].default)
