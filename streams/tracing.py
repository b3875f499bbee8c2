"""OpenTelemetry for every service: one provider a process, spans to a file of the run directory or to OTLP.

Context travels in the `traceparent` header of the records (W3C Trace Context); batch stages use span links.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, Span, SpanContext
from opentelemetry.trace import SpanKind as SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from streams import names
from streams.record import Record

_propagator: Final = TraceContextTextMapPropagator()
_tracer: Final = trace.get_tracer("eachprompt")


class FileSpanExporter(SpanExporter):
    """Spans as JSON lines, one file a process: readable by `eachprompt trace` without a collector."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Append `spans`; a full disk loses spans and never a rollout."""
        try:
            self._file.writelines(_line(span) for span in spans)
            self._file.flush()
        except OSError:
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Close the file."""
        self._file.close()


def _line(span: ReadableSpan) -> str:
    context = span.get_span_context()
    return (
        json.dumps(
            {
                "name": span.name,
                "trace_id": f"{context.trace_id:032x}" if context else None,
                "span_id": f"{context.span_id:016x}" if context else None,
                "parent_id": f"{span.parent.span_id:016x}" if span.parent else None,
                "start_ns": span.start_time,
                "end_ns": span.end_time,
                "status": span.status.status_code.name,
                "service": span.resource.attributes.get("service.name"),
                "attributes": dict(span.attributes or {}),
                "links": [f"{link.context.trace_id:032x}/{link.context.span_id:016x}" for link in span.links],
            },
            default=str,
        )
        + "\n"
    )


def configure(service: str, ordinal: int, run: str, directory: Path, otlp_endpoint: str | None) -> TracerProvider:
    """Install the process's tracer provider: OTLP over HTTP where an endpoint is given, else `<directory>/traces/`."""
    resource = Resource.create(
        {"service.name": f"eachprompt.{service}", "service.instance.id": ordinal, names.RUN: run}
    )
    provider = TracerProvider(resource=resource)
    exporter: SpanExporter
    if otlp_endpoint is None:
        exporter = FileSpanExporter(directory / "traces" / f"{service}-{ordinal}-{os.getpid()}.jsonl")
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter(endpoint=otlp_endpoint)
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=16_384))
    trace.set_tracer_provider(provider)
    return provider


def context_of(record: Record) -> Context:
    """The trace context that `record` carries; an empty one where it carries none."""
    header = record.headers.get(names.TRACEPARENT)
    return _propagator.extract({names.TRACEPARENT: header.decode("ascii", "replace")} if header else {}, Context())


def span_context_of(record: Record) -> SpanContext | None:
    """The span that wrote `record`, for a link."""
    context = trace.get_current_span(context_of(record)).get_span_context()
    return context if context.is_valid else None


@contextmanager
def span(
    name: str,
    *,
    cause: Record | None = None,
    links: Sequence[Record] = (),
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Mapping[str, AttributeValue] | None = None,
) -> Iterator[Span]:
    """A span around a block. Its parent is the writer of `cause`, or the current span; `links` are further causes."""
    found = [context for record in links if (context := span_context_of(record)) is not None]
    with _tracer.start_as_current_span(
        name,
        context=None if cause is None else context_of(cause),
        kind=kind,
        links=[Link(context) for context in found],
        attributes=attributes,
    ) as active:
        yield active


def traceparent() -> bytes | None:
    """The current span as a `traceparent` header value."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    value = carrier.get(names.TRACEPARENT)
    return None if value is None else value.encode("ascii")
