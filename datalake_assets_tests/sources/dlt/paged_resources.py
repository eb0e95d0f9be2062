"""Resources of dlt that read an API that pages, or fail to; loaded by name, since dlt takes a second to import."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dlt
import pyarrow as pa
from dlt.sources.rest_api import rest_api_resources

__all__ = ["broken", "counted", "events", "fine", "late", "nobody", "odd", "plain"]


def events(url: str) -> Any:
    """dlt's own REST source, read on by ``id``."""
    config: Any = {
        "client": {"base_url": url, "paginator": {"type": "page_number", "base_page": 1, "total_path": None}},
        "resources": [
            {
                "name": "events",
                "primary_key": "id",
                "endpoint": {
                    "path": "events",
                    "data_selector": "items",
                    "params": {"since": {"type": "incremental", "cursor_path": "id", "initial_value": 0}},
                },
            }
        ],
    }
    return rest_api_resources(config)[0]


@dlt.resource(name="counted")
def counted(url: str) -> Iterator[dict[str, Any]]:
    """A state of its own, and rows that are alike."""
    state = dlt.current.resource_state()
    state["runs"] = state.get("runs", 0) + 1
    for _ in range(3):
        yield {"at": "2025-01-01T00:00:00Z", "run": 1 if url == "same" else state["runs"]}


@dlt.resource(name="late")
def late() -> Iterator[dict[str, Any]]:
    """A column that has no value at first."""
    state = dlt.current.resource_state()
    state["runs"] = state.get("runs", 0) + 1
    yield {"at": "2025-01-01T00:00:00Z", "price": 1.5 if state["runs"] > 1 else None}


plain = dlt.resource([{"id": 1, "mixed": 1}, {"id": 2, "mixed": "x"}], name="plain")


#: Values that dlt's own JSON has no place for, or takes for others.
odd = dlt.resource(
    [
        {"id": 1, "number": float("inf"), "large": 2**70, "text": "\uf0261.5", "nested": {"n": 2**70}},
        {"id": 2, "number": float("-inf"), "large": -(2**65), "text": "\uf0272024-01-01", "nested": None},
        {"id": 3, "number": 0.5, "large": 1, "text": "\ud800", "nested": ["\uf0261.5"]},
    ],
    name="odd",
)


@dlt.resource(name="fine")
def fine() -> Iterator[pa.Table]:
    """Times in nanoseconds, as pandas has them; of one column some are finer than Python's."""
    whole, finer = 1_735_689_600_000_000_000, 1_735_689_600_000_000_001
    kind = pa.timestamp("ns", "UTC")
    yield pa.table({"at": pa.array([whole, whole + 1000], kind), "seen": pa.array([finer, finer + 1], kind)})


def nobody() -> None:
    """Makes no resource."""


@dlt.resource
def broken(url: str) -> Iterator[dict[str, Any]]:
    """Fails after a row."""
    yield {"id": 1, "at": "2025-01-01T00:00:00Z"}
    raise ValueError(f"cannot read {url}?key=s3cret")
