"""The kinds of sinks that feeds can declare. A new one is a folder beside this module, and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from datalake_assets.errors import ConfigError
from datalake_assets.sinks.base import SinkKind
from datalake_assets.sinks.opensearch.opensearch_model import OPENSEARCH
from datalake_assets.sinks.webhook.webhook_model import WEBHOOK

__all__ = ["sink_kind", "sink_kinds"]

_KINDS: Mapping[str, SinkKind] = {each.type: each for each in (OPENSEARCH, WEBHOOK)}


def sink_kinds() -> Mapping[str, SinkKind]:
    """All kinds, by type."""
    return _KINDS


def sink_kind(type_: str) -> SinkKind:
    """The kind of this type.

    Raises:
        ConfigError: There is none.
    """
    if type_ not in _KINDS:
        raise ConfigError(f"there is no sink of type {type_!r}; take one of {', '.join(sorted(_KINDS))}")
    return _KINDS[type_]
