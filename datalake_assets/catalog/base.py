"""What a catalog does for us, whichever it is; one suite holds all of them to it (`catalog_contract` among the tests).

A catalog belongs to whoever made it. What is entered names its lake, and nothing is changed or dropped that names
another one, or none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, Self

from datalake_assets.catalog.entries import Entry
from datalake_assets.catalog.views import View

__all__ = ["OWNER", "Catalog", "Known", "Outcome", "State"]

#: The property of what we enter that names the lake; in Glue and Hive a table's parameter.
OWNER = "datalake.lake"

#: What became of a feed or a view. ``current``: nothing had to be done.
State = Literal["created", "updated", "current", "left_out", "stale", "dropped", "failed"]


@dataclass(frozen=True, slots=True)
class Known:
    """What a catalog has under a name.

    Attributes:
        name: The name.
        owner: The lake that entered it; empty if none did.
        is_view: Whether it is a view of SQL, not a feed.
    """

    name: str
    owner: str
    is_view: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one feed or view in one catalog.

    Attributes:
        catalog: Which.
        name: The feed or the view.
        state: What was done.
        partitions_added: Partitions that were entered.
        partitions_removed: Partitions that were taken out: the feed has them no more.
        partitions_moved: Partitions whose address was another.
        detail: For a person; the reason where nothing was done or could be.
    """

    catalog: str
    name: str
    state: State
    partitions_added: int = 0
    partitions_removed: int = 0
    partitions_moved: int = 0
    detail: str = ""


class Catalog(Protocol):
    """One database of a catalog; used as a context, at whose end all is written.

    Methods may raise `LakeUnavailable`, `TransientStoreError` (worth repeating) and `ConfigError`. Each may be repeated
    after a crash: what was done is found and left as it is.
    """

    @property
    def kind(self) -> str:
        """``duckdb``, ``glue`` or ``hive``."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def has_database(self) -> bool:
        """Whether the database is there."""

    def create_database(self) -> None:
        """Creates it; one that is there by now is no error."""

    def known(self) -> dict[str, Known]:
        """All that it has, by name in lower case."""

    def why_not(self, entry: Entry) -> str:
        """Why it cannot have a feed; empty if it can."""

    def needs(self, entry: Entry) -> bool:
        """Whether what is there for a feed differs from its entry."""

    def create(self, entry: Entry) -> Outcome:
        """Enters a feed that is not there; one that another process has entered meanwhile is brought up to date."""

    def update(self, entry: Entry) -> Outcome:
        """Brings a feed up to date that is there: columns, address, partitions."""

    def put_view(self, view: View) -> Outcome:
        """Creates a view, or replaces it if it is another."""

    def drop(self, known: Known) -> None:
        """Takes out what is ours; data stay. What is gone already is no error."""
