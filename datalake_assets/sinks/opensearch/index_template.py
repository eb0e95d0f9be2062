"""What an index knows of a feed's columns: the types of fields, and the template by which new indices get them.

JSON has fewer types than Arrow. Decimals are sent as texts, which the server indexes as doubles and gives back as they
were; bytes as hexadecimal; what a server cannot search is kept and not indexed, never left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from datalake_assets.sinks.base import PARTITION_FIELD
from datalake_assets.sinks.opensearch.opensearch_model import OpenSearchSink

__all__ = ["mapping", "template"]

#: Of texts that are longer nothing is indexed: Lucene takes 32,766 bytes of UTF-8, which has up to 4 for a character.
_LONGEST_TERM = 8_191
#: Templates of others for a wider pattern come after ours.
_PRIORITY = 500

_KEYWORD: Mapping[str, Any] = {"type": "keyword", "ignore_above": _LONGEST_TERM}
_KINDS: Sequence[tuple[Callable[[pa.DataType], bool], Mapping[str, Any]]] = (
    (pa.types.is_boolean, {"type": "boolean"}),
    (pa.types.is_uint64, {"type": "unsigned_long"}),
    (pa.types.is_integer, {"type": "long"}),
    (pa.types.is_floating, {"type": "double"}),
    (pa.types.is_decimal, {"type": "double"}),
    (pa.types.is_timestamp, {"type": "date"}),
    (pa.types.is_date, {"type": "date"}),
)
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


def mapping(schema: pa.Schema, *, text: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a feed's documents.

    Args:
        schema: The columns.
        text: Text columns that are searched by their words; as they are, too, under ``<name>.keyword``.
    """
    fields = {each.name: _field(each.type) for each in schema}
    for name in text:
        if name in fields and fields[name].get("type") == "keyword":
            fields[name] = {"type": "text", "fields": {"keyword": dict(_KEYWORD)}}
    return {**fields, PARTITION_FIELD: {"type": "keyword"}}


def _field(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_dictionary(kind) or any(is_list(kind) for is_list in _LISTS):
        return _field(kind.value_type)
    if pa.types.is_struct(kind):
        return {"type": "object", "dynamic": False, "properties": {each.name: _field(each.type) for each in kind}}
    if pa.types.is_map(kind):
        return {"type": "object", "enabled": False}
    return dict(next((found for is_kind, found in _KINDS if is_kind(kind)), _KEYWORD))


def template(
    base: str, sink: OpenSearchSink, properties: Mapping[str, Any], *, owner: Mapping[str, str]
) -> dict[str, Any]:
    """The index template of a feed.

    Args:
        base: What names of its indices begin with.
        sink: What the feed says of the sink.
        properties: As of `mapping`.
        owner: Who fills them.
    """
    settings: dict[str, Any] = {}
    if sink.shards is not None:
        settings["number_of_shards"] = sink.shards
    if sink.replicas is not None:
        settings["number_of_replicas"] = sink.replicas
    return {
        "index_patterns": [f"{base}-*"],
        "priority": _PRIORITY,
        "_meta": {"datalake": dict(owner)},
        # a field that no column declares cannot come, and must not become one by its first value
        "template": {"settings": settings, "mappings": {"dynamic": False, "properties": dict(properties)}},
    }
