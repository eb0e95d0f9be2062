"""Spans of an export and a compaction arrive at a collector that speaks OTLP; without one nothing is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

PROGRAM = """
import sys
from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.lake.store import open_store
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.lake.feeds import stream_feed
from datalake_assets_tests.lake.many_files import append
store, feed = open_store(sys.argv[1]), stream_feed()
append(store, feed, times=2)
open_table(store, feed).compact("2025-01-01", CompactionRequest(force=True))
print(sorted(name for name in sys.modules if name.startswith("opentelemetry"))[:1])
"""


@pytest.fixture
def collector():
    """What was posted to a collector."""
    taken: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            taken.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", taken
        server.shutdown()


def ran(folder, **environment: str) -> str:
    folder.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_export_and_compaction_are_traced_with_what_they_are_made_of(collector, tmp_path):
    url, taken = collector

    ran(tmp_path / "lake", OTEL_EXPORTER_OTLP_ENDPOINT=url)

    resources = [each for request in taken for each in request.resource_spans]
    names = {each.key: each.value.string_value for each in resources[0].resource.attributes}
    assert names["service.name"] == "datalake"
    spans = [span for each in resources for scope in each.scope_spans for span in scope.spans]
    by_id = {each.span_id: each for each in spans}

    def parents(name):
        return [by_id[each.parent_span_id].name for each in spans if each.name == name and each.parent_span_id]

    assert sorted(each.name for each in spans if not each.parent_span_id) == [
        "datalake compact",
        "datalake export",
        "datalake export",
    ]
    assert parents("datalake rewrite") == ["datalake compact"]
    assert sorted(parents("datalake commit")) == ["datalake compact", *["datalake export"] * 6]
    (compact,) = [each for each in spans if each.name == "datalake compact"]
    assert {each.key: each.value.string_value for each in compact.attributes} == {
        "datalake.feed": "streams/s",
        "datalake.partition": "2025-01-01",
    }
    assert all(0 < each.start_time_unix_nano < each.end_time_unix_nano for each in spans)


def test_nothing_of_it_is_loaded_where_no_collector_is_named(tmp_path):
    assert ran(tmp_path / "lake") == "[]"


def test_collector_that_is_not_there_costs_no_export(tmp_path):
    ran(tmp_path / "lake", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", OTEL_EXPORTER_OTLP_TIMEOUT="1")
