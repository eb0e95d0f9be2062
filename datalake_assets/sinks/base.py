"""What a kind of sink declares, and what a store of documents does, so that nothing else needs to know one by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Protocol

from datalake_assets.errors import ConfigError
from datalake_assets.feed import Feed
from datalake_assets.feed_sinks import SinkModel
from datalake_assets.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

    from datalake_assets.lake.store.base import Store

__all__ = ["PARTITION_FIELD", "DeliveryReport", "Document", "DocumentStore", "Refusal", "SinkKind", "StoredId"]

#: The field of every document that has its partition's key: by it the documents of a partition are found.
PARTITION_FIELD = "datalake_partition"


@dataclass(frozen=True, slots=True)
class Document:
    """A row on its way to a sink.

    Attributes:
        id: The same whenever the row is sent, and no other row's.
        body: A JSON object, UTF-8, without line breaks.
    """

    id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Refusal:
    """A document that a store does not take, and will not take when it is sent again.

    Attributes:
        document: It.
        reason: The store's words.
    """

    document: Document
    reason: str


@dataclass(frozen=True, slots=True)
class StoredId:
    """A document that a store has.

    Attributes:
        target: Its place, as `DocumentStore.target` names places.
        id: Its id.
        version: Another one after every write of it, as the store counts them; None if the store does not tell.
    """

    target: str
    id: str
    version: tuple[int, int] | None = None


class DocumentStore(Protocol):
    """A store of documents by id, such as a search engine; close it."""

    def prepare(self, schema: pa.Schema) -> None:
        """Makes the store ready for documents of these columns; idempotent.

        Raises:
            SourceUnavailable: It may be ready later.
            SourceRefused: A person must mend something.
        """

    def target(self, partition: str) -> str:
        """The place in the store where documents of a partition go now; it is there afterwards."""

    def write(self, target: str, documents: Iterable[Document]) -> Iterator[Refusal]:
        """Writes documents, each over the one of its id; gives those that the store refuses. Bounded in memory.

        What was taken is as durable as the store makes it. After an error any of the documents may be there.

        Raises:
            SourceUnavailable: It may take the rest later.
            SourceRefused: A person must mend something.
        """

    def stored(self, partition: str) -> Iterator[StoredId]:
        """All documents of a partition that the store has, wherever they lie; what was written before is among them."""

    def remove(self, ids: Iterable[StoredId]) -> None:
        """Removes documents, but for those that were written since they were looked at, or are gone."""

    def tidy(self) -> None:
        """Does what is due after a delivery, such as beginning a new index."""

    def close(self) -> None:
        """Closes its connections; idempotent."""


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """What a delivery to one sink did.

    Attributes:
        feed: Name of the feed.
        sink: Name of the sink.
        sent: Documents, or alerts, that it took.
        removed: Documents that were removed since their rows are no more.
        refused: Documents that it refused: they are dead letters.
        partitions: Partitions that were sent.
        lag_rows: Rows that are in the lake and were not sent, or of which nobody knows.
        oldest: Since when the oldest of them has waited, if that is known.
        error: Why it ended early; empty if all was sent.
    """

    feed: str
    sink: str
    sent: int = 0
    removed: int = 0
    refused: int = 0
    partitions: int = 0
    lag_rows: int = 0
    oldest: datetime | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class SinkKind:
    """A kind of sink; a line in `datalake_assets.sinks.kinds` makes it one of those that there are.

    Attributes:
        model: What a feed may say of it.
        connect: Address, ``package.module:function``, of what gives the `DocumentStore` of a feed's sink from the lake,
            the feed, the model and the settings; of a sink that takes no rows, of what gives the route of its alerts.
        settings: The installation's settings with the sink's own.
        extra: The extra of our package that has what it imports; empty if it needs none.
    """

    model: type[SinkModel]
    connect: str
    settings: type[Settings] = Settings
    extra: str = ""

    @property
    def type(self) -> str:
        """The model's type, which feeds name."""
        return str(self.model.model_fields["type"].default)

    def found(self) -> Callable[..., Any]:
        """What ``connect`` names.

        Raises:
            ConfigError: What it needs is not installed.
        """
        try:
            function: Callable[..., Any] = resolve_name(self.connect)
        except ModuleNotFoundError as error:
            if not self.extra:
                raise
            missing = f"sink {self.type!r}: {error.name} is not installed"
            raise ConfigError(f"{missing}; pip install 'datalake-assets[{self.extra}]'") from error
        return function

    def open(self, lake: Store, feed: Feed, sink: SinkModel, settings: Settings) -> DocumentStore:
        """The store of a feed's sink; asks nothing of it yet. Close it.

        Raises:
            ConfigError: The settings cannot work, or what it needs is not installed.
        """
        opened: DocumentStore = self.found()(lake, feed, sink, settings.of(self.settings))
        return opened
