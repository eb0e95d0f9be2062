"""Asking a Dagster web server: what tests wait for, they ask for here; what they do, they do in the page."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx

__all__ = ["GraphQL", "eventually"]

#: A loaded machine of two cores takes its time; only a test that fails waits as long.
PATIENCE_S = 90.0
_POLL_S = 1.0
#: Knows no authorities: reading those of the machine costs more than a question.
_NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

_RUNS = """
query Runs($filter: RunsFilter) {
  runsOrError(filter: $filter, limit: 1000) {
    ... on Runs { results { runId status jobName tags { key value } } }
  }
}
"""
_LOG = """
query Log($id: ID!) {
  logsForRun(runId: $id) { ... on EventConnection { events { ... on MessageEvent { message } } } }
}
"""
_BACKFILL = (
    "query B($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } } }"
)
_ASSETS = "{ assetNodes { assetKey { path } groupName kinds description } }"
_CHECKS = """
query Checks($key: AssetKeyInput!) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode {
      assetChecksOrError {
        ... on AssetChecks { checks { name executionForLatestMaterialization { status evaluation { success } } } }
      }
    }
  }
}
"""
_CHECKED_PARTITIONS = """
query CheckedPartitions($key: AssetKeyInput!) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode {
      assetChecksOrError {
        ... on AssetChecks {
          checks {
            name
            partitionStatuses { ... on AssetCheckTimePartitionStatuses { ranges { startKey endKey status } } }
          }
        }
      }
    }
  }
}
"""
_METADATA = """
query Materializations($key: AssetKeyInput!, $partitions: [String!]) {
  assetOrError(assetKey: $key) {
    ... on Asset {
      assetMaterializations(partitions: $partitions, limit: 200) {
        runId partition timestamp
        metadataEntries { label ... on IntMetadataEntry { intValue } ... on TextMetadataEntry { text } }
      }
    }
  }
}
"""
_SENSOR = """
query Sensor($name: String!, $location: String!) {
  sensorOrError(sensorSelector: {repositoryLocationName: $location, repositoryName: "__repository__",
                                 sensorName: $name}) {
    ... on Sensor { name sensorState { status ticks(limit: 20) { status timestamp skipReason runIds } } }
  }
}
"""


class GraphQL:
    """A Dagster web server's API.

    Args:
        url: The server's.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, query: str, **variables: object) -> dict[str, Any]:
        """The answer's data.

        Raises:
            httpx.HTTPError: The server is not there, or not yet.
        """
        # a client of its own per question: the server may be another one by the next
        asked = {"query": query, "variables": variables}
        answer = httpx.post(f"{self.url}/graphql", json=asked, timeout=60, verify=_NO_AUTHORITIES)
        answer.raise_for_status()
        document: dict[str, Any] = answer.json()
        if document.get("errors"):
            raise AssertionError(f"GraphQL: {document['errors']}")
        data: dict[str, Any] = document["data"]
        return data

    def runs(self, *, tags: Mapping[str, str] | None = None, statuses: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Runs, newest first, with their tags as a dict."""
        chosen: dict[str, Any] = {"tags": [{"key": key, "value": value} for key, value in (tags or {}).items()]}
        if statuses:
            chosen["statuses"] = list(statuses)
        found: list[dict[str, Any]] = self.ask(_RUNS, filter=chosen)["runsOrError"]["results"]
        return [each | {"tags": {tag["key"]: tag["value"] for tag in each["tags"]}} for each in found]

    def run_status(self, run_id: str) -> str:
        """``SUCCESS``, for one; empty if there is no run whose id begins so."""
        return next((run["status"] for run in self.runs() if run["runId"].startswith(run_id)), "")

    def log(self, run_id: str) -> list[str]:
        """The lines of a run's log."""
        return [event.get("message", "") for event in self.ask(_LOG, id=run_id)["logsForRun"]["events"]]

    def backfill_status(self, backfill_id: str) -> str:
        """``COMPLETED_SUCCESS``, for one."""
        status: str = self.ask(_BACKFILL, id=backfill_id)["partitionBackfillOrError"].get("status", "")
        return status

    def assets(self) -> dict[str, dict[str, Any]]:
        """All assets by ``streams/name``."""
        return {"/".join(node["assetKey"]["path"]): node for node in self.ask(_ASSETS)["assetNodes"]}

    def checks(self, asset: str) -> dict[str, bool | None]:
        """By the name of a check, whether it passed for the latest materialization; None if it was not evaluated."""
        node = self.ask(_CHECKS, key={"path": asset.split("/")})["assetNodeOrError"]
        done = {
            each["name"]: each["executionForLatestMaterialization"] for each in node["assetChecksOrError"]["checks"]
        }
        return {
            name: execution["evaluation"]["success"] if execution and execution["evaluation"] else None
            for name, execution in done.items()
        }

    def checked(self, asset: str, check: str) -> dict[str, list[tuple[str, str]]]:
        """Of a check of a stream: by status, the first and last partition of each range that the UI shows so."""
        node = self.ask(_CHECKED_PARTITIONS, key={"path": asset.split("/")})["assetNodeOrError"]
        (found,) = [each for each in node["assetChecksOrError"]["checks"] if each["name"] == check]
        ranges: dict[str, list[tuple[str, str]]] = {}
        for each in found["partitionStatuses"]["ranges"]:
            ranges.setdefault(each["status"], []).append((each["startKey"], each["endKey"]))
        return ranges

    def materializations(self, asset: str, partitions: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Newest first: ``runId``, ``partition``, and ``metadata`` with the numbers and texts."""
        chosen = {"key": {"path": asset.split("/")}, "partitions": partitions}
        found = self.ask(_METADATA, **chosen)["assetOrError"].get("assetMaterializations", [])
        return [
            {
                "runId": each["runId"],
                "partition": each["partition"],
                "metadata": {
                    entry["label"]: entry.get("intValue", entry.get("text")) for entry in each["metadataEntries"]
                },
            }
            for each in found
        ]

    def sensor(self, name: str, location: str = "datalake_assets") -> dict[str, Any]:
        """A sensor's ``status`` and newest ``ticks``."""
        state: dict[str, Any] = self.ask(_SENSOR, name=name, location=location)["sensorOrError"]["sensorState"]
        return state


def eventually(condition: Callable[[], Any], what: str, *, within_s: float = PATIENCE_S) -> Any:
    """Waits until a condition holds, and returns what it returned; a web server that is not there yet does not hold.

    Raises:
        AssertionError: It did not hold in time.
    """
    until = time.monotonic() + within_s
    last: object = None
    while time.monotonic() < until:
        try:
            last = condition()
        except httpx.HTTPError as error:
            last = error
        else:
            if last:
                return last
        time.sleep(_POLL_S)
    raise AssertionError(f"not within {within_s:.0f} s: {what}; last: {last!r}")
