"""What a feed may say of the places that its rows, or alerts about it, are sent on to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any, Protocol

from pydantic import ConfigDict, Field

from datalake_assets.policies import Model

__all__ = ["SinkModel", "as_declared_sink", "declared_sinks"]

#: Where the kinds of sinks are listed. They stand above this module and import it, so they are found by name (ADR 016).
_KINDS = "datalake_assets.sinks.kinds"


class SinkModel(Model, ABC):
    """What a feed may say of a sink; each kind has a model of its own. Where it is, and its secrets, are settings.

    Attributes:
        type: Tells the models apart.
        name: Names the sink among those of its feed, and its position for life; default: its type.
    """

    model_config = ConfigDict(defer_build=True)

    type: str
    name: Annotated[str, Field(pattern=r"^([a-z][a-z0-9_]{0,63})?$")] = ""

    @property
    def label(self) -> str:
        """Its name, declared or by default."""
        return self.name or self.type

    @property
    def place(self) -> str:
        """Where its documents lie, as far as the feed says it: what was sent to another place is not here."""
        return ""

    @property
    @abstractmethod
    def takes_rows(self) -> bool:
        """Whether it gets the feed's rows; else alerts about it."""


class _Declared(Protocol):
    @property
    def model(self) -> type[SinkModel]: ...


def declared_sinks() -> Mapping[str, Any]:
    """The kinds of sinks, by type; what they are is `datalake_assets.sinks.base.SinkKind`."""
    kinds: Mapping[str, Any] = import_module(_KINDS).sink_kinds()
    return kinds


def as_declared_sink(sink: Any) -> Any:
    """A sink's document as its own model.

    Raises:
        ValueError: There is no sink of this type.
    """
    if not isinstance(sink, dict):
        return sink
    kinds: Mapping[str, _Declared] = declared_sinks()
    wanted = str(sink.get("type"))
    if wanted not in kinds:
        msg = f"there is no sink of type {wanted!r}; take one of {', '.join(sorted(kinds))}"
        raise ValueError(msg)
    return kinds[wanted].model.model_validate(sink)
