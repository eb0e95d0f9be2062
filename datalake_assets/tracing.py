"""Traces of what takes time, by OpenTelemetry, where that is installed and told where spans go; nothing otherwise.

Whoever instruments the process (``opentelemetry-instrument``, an SDK of their own) gets our spans. Where nobody does,
and ``OTEL_EXPORTER_OTLP_ENDPOINT`` (or ``…_TRACES_ENDPOINT``) is set, spans are sent there by OTLP over HTTP. A
collector that does not answer costs spans, and no export.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

__all__ = ["span"]

logger = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
#: OpenTelemetry's switch (OpenTelemetry specification, "Environment variables").
_DISABLED = "OTEL_SDK_DISABLED"


@contextmanager
def span(name: str, **attributes: str | int) -> Iterator[None]:
    """A span for as long as the context is open, in the one around it; an error ends it as failed, and goes on.

    Args:
        name: What is done, in a word or two.
        attributes: What it is done to; shown as ``datalake.<name>``.
    """
    tracer = _tracer() if _is_wanted() else None
    if tracer is None:
        yield
        return
    told = {f"datalake.{key}": value for key, value in attributes.items()}
    with tracer.start_as_current_span(f"datalake {name}", attributes=told):
        yield


def _is_wanted() -> bool:
    """Loading the API takes some milliseconds, which most processes need not spend."""
    if os.environ.get(_DISABLED, "").lower() == "true":
        return False
    return "opentelemetry.trace" in sys.modules or any(map(os.environ.get, _ENDPOINTS))


@cache
def _tracer() -> Any:
    try:
        from opentelemetry import trace  # noqa: PLC0415  optional
    except ModuleNotFoundError:
        logger.warning("spans are not sent: pip install 'datalake-assets[otel]'")
        return None
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider) and any(map(os.environ.get, _ENDPOINTS)):
        _provide()
    return trace.get_tracer("datalake_assets")


def _provide() -> None:
    """Sends spans by OTLP, in the background; what is left goes when the process ends."""
    try:
        from opentelemetry import trace  # noqa: PLC0415  optional
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415  optional
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415  optional
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415  optional
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415  optional
    except ModuleNotFoundError as error:
        logger.warning("spans are not sent (%s is missing): pip install 'datalake-assets[otel]'", error.name)
        return
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "datalake"}
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    atexit.register(provider.shutdown)
    trace.set_tracer_provider(provider)
