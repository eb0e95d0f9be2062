"""What OpenSearch declares of itself as a sink. Loaded wherever feeds are read, so nothing heavy is imported."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from datalake_assets.feed_sinks import SinkModel
from datalake_assets.policies import Duration, Model
from datalake_assets.settings import Settings
from datalake_assets.sinks.base import SinkKind

__all__ = ["OPENSEARCH", "OpenSearchSettings", "OpenSearchSink", "RolloverLimits"]


class RolloverLimits(Model):
    """When an index is full, and the next one is begun; whichever comes first.

    Attributes:
        max_docs: Documents.
        max_age: Since it was begun.
        max_size_gb: Size of its primary shards, in gigabytes as the server counts them.
    """

    max_docs: Annotated[int, Field(ge=1)] = 50_000_000
    max_age: Duration = timedelta(days=1)
    max_size_gb: Annotated[int, Field(ge=1)] = 30


class OpenSearchSink(SinkModel):
    """An index, or several, of an OpenSearch or Elasticsearch cluster that has a document for each row of the feed.

    Attributes:
        prefix: Begins the names of its indices, before the feed's name: ``prod-`` makes ``prod-payments-2025-01-15``.
        by: ``partition``: an index for each partition of the feed; ``rollover``: an alias whose index is followed by
            the next one when it is full; ``feed``: one index.
        rollover: When that is, with ``by: rollover``.
        text: Text columns that are searched by their words; all others are found, sorted and counted as they are.
        shards: Primary shards of a new index; None: as the server has it.
        replicas: Copies of each; None: likewise.
        batch_rows: Documents of one request at the most.
        batch_mb: Megabytes of one request at the most.
    """

    type: Literal["opensearch"] = "opensearch"
    prefix: Annotated[str, Field(pattern=r"^([a-z0-9][a-z0-9_.-]{0,99})?$")] = ""
    by: Literal["partition", "rollover", "feed"] = "partition"
    rollover: RolloverLimits = RolloverLimits()
    text: tuple[str, ...] = ()
    shards: Annotated[int, Field(ge=1, le=1024)] | None = None
    replicas: Annotated[int, Field(ge=0, le=100)] | None = None
    batch_rows: Annotated[int, Field(ge=1, le=100_000)] = 1_000
    batch_mb: Annotated[int, Field(ge=1, le=100)] = 5

    @property
    def place(self) -> str:
        """Which indices it has, and what their names begin with."""
        return f"{self.by} {self.prefix}"

    @property
    def takes_rows(self) -> bool:
        """Rows."""
        return True


class OpenSearchSettings(Settings):
    """Settings of OpenSearch as a sink.

    Attributes:
        opensearch_url: Its nodes, with commas between: ``https://search1:9200``.
        opensearch_user: User for HTTP Basic authentication.
        opensearch_password: That user's password.
        opensearch_api_key: An API key, encoded as the server gives it, instead of a user.
        opensearch_ca_file: PEM file of the authority that signed its certificate, if it is not a public one.
        opensearch_timeout_s: Seconds to wait for the next bytes of an answer; for all of it, four times as long.
        opensearch_retry_s: Seconds for which a busy or absent server is tried again, within one delivery.
    """

    opensearch_url: str | None = None
    opensearch_user: str | None = None
    opensearch_password: SecretStr | None = None
    opensearch_api_key: SecretStr | None = None
    opensearch_ca_file: str | None = None
    opensearch_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    opensearch_retry_s: Annotated[float, Field(ge=0)] = 60.0


OPENSEARCH = SinkKind(
    model=OpenSearchSink,
    connect="datalake_assets.sinks.opensearch.opensearch:connect",
    settings=OpenSearchSettings,
    extra="opensearch",
)
