"""What dlt declares of itself as a source: what a feed may say of a resource, the settings, the options.

Loaded wherever feeds are read, so nothing heavy is imported before the connection.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from datalake_assets.errors import ConfigError, InvalidFeed
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind, PositionKind, SystemSource
from datalake_assets.settings import Settings
from datalake_assets.sources.base import FeedOption, System

__all__ = ["DLT", "DltSettings", "DltSource", "declared_resource"]


class DltSource(SystemSource):
    """A resource of dlt: of its verified sources, like ``dlt.sources.rest_api``, or of a module of your own.

    A stream keeps the resource's state with its rows: of its incremental cursors, and whatever else it writes down.
    A table is extracted whole each time, from an empty state.

    Attributes:
        factory: The resource, or a source or function that makes it, as ``package.module:name``; the settings have to
            allow its module.
        arguments: What the function is called with. Credentials come from dlt's own configuration, never from here.
        resource: The name of the resource in a source that has several.
        columns: Types of columns by their names in the lake, where neither dlt's hints nor the values tell: those of
            dropped files, like ``decimal(18, 2)`` or ``timestamptz``.
        rename: Names in the lake by names in the resource, where the lower-cased name cannot serve.
        horizon_days: Days in which an export that died has to be finished: so long its rows are remembered.
    """

    serves: ClassVar[frozenset[FeedKind]] = frozenset({FeedKind.STREAM, FeedKind.TABLE})

    type: Literal["dlt"] = "dlt"
    factory: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    arguments: dict[str, Any] = Field(default_factory=dict)
    resource: str = ""
    columns: dict[str, str] = Field(default_factory=dict)
    rename: dict[str, str] = Field(default_factory=dict)
    horizon_days: Annotated[int, Field(ge=1, le=3650)] = 30

    @property
    def where(self) -> str:
        """What is read, for a person."""
        return f"{self.factory}{f'/{self.resource}' if self.resource else ''}"

    def position_kind(self, kind: FeedKind) -> PositionKind:
        """Snapshots of tables; the rows of a stream are remembered one by one until their extraction is landed."""
        return PositionKind.SNAPSHOT if kind is FeedKind.TABLE else PositionKind.IDS

    def reading(self, kind: FeedKind) -> str:
        """``snapshots``, or ``extractions``."""
        return "snapshots" if kind is FeedKind.TABLE else "extractions"

    def problem(self) -> str | None:
        """Types that are none, and names that no columns can have."""
        from datalake_assets.core.schema import lake_names  # noqa: PLC0415  Arrow, and every command reads feeds
        from datalake_assets.sources.files.text_values import named_type  # noqa: PLC0415  the same

        for name, kind in self.columns.items():
            try:
                named_type(kind)
            except ValueError as error:
                return f"source.columns: {name!r}: {error}"
        try:
            lake_names(tuple(self.rename), feed=self.where, rename=self.rename)
        except InvalidFeed as error:
            return f"source.rename: {error.reason}"
        return None


class DltSettings(Settings):
    """Settings of dlt; credentials of its sources are dlt's own (``.dlt/secrets.toml``, environment variables).

    Attributes:
        dlt_modules: Modules and packages whose resources feeds may name, with commas between; a feed's document must
            not make a process call whatever is installed.
    """

    dlt_modules: str = ""


def declared_resource(feed: Feed) -> DltSource:
    """What a feed says of a resource.

    Raises:
        ConfigError: It reads something else.
    """
    source = feed.exported_from
    if isinstance(source, DltSource):
        return source
    raise ConfigError(f"feed {feed.name!r} reads {source.type}, not dlt")


DLT = System(
    model=DltSource,
    connect="datalake_assets.sources.dlt.dlt_source:connect",
    settings=DltSettings,
    options=(
        FeedOption("--factory", "factory", "Resource, or what makes it.", "MODULE:NAME", required=True),
        FeedOption("--resource", "resource", "Name of the resource in a source of several.", "NAME"),
        FeedOption("--argument", "arguments", "What it is called with.", "NAME=TEXT", shape="pairs"),
        FeedOption("--column-type", "columns", "Type of a column.", "NAME=TYPE", shape="pairs"),
        FeedOption("--rename", "rename", "Name of a column in the lake.", "OLD=NEW", shape="pairs"),
    ),
    object_field="factory",
)
