"""OpenTelemetry for every service: one provider a process, spans to a file of the run directory or to OTLP.

Context travels in the `traceparent` header of the records (W3C Trace Context); batch stages use span links.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar, Token
from pathlib import Path
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import INVALID_SPAN, Link, Span, SpanContext
from opentelemetry.trace import SpanKind as SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from streams.record import Record
from streams.telemetry import names

_propagator: Final = TraceContextTextMapPropagator()
_tracer: Final = trace.get_tracer("eachprompt")
_NOT_SAMPLED: Final = b"-00"

TRACES_PER_S: Final = 50.0
"""Traces that a process begins at most. A span costs 20 to 40 µs, which at thousands of rollouts a second would be most
of what the light services do; 50 a second show as well where the time goes."""


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


class _Unrecorded:
    """The block of a span that is not recorded; what is written in it carries `header`, so readers record nothing."""

    __slots__ = ("_header", "_token")

    def __init__(self, header: bytes) -> None:
        self._header = header

    def __enter__(self) -> Span:
        self._token: Token[bytes | None] = _unrecorded.set(self._header)
        return INVALID_SPAN

    def __exit__(self, *_: object) -> None:
        _unrecorded.reset(self._token)


class _Budget:
    """How many traces a process may begin: `per_s` a second, saved up to one second."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._left = per_s
        self._filled_s = time.monotonic()

    def take(self) -> bool:
        """Whether one more may begin now."""
        now_s = time.monotonic()
        self._left = min(self._per_s, self._left + (now_s - self._filled_s) * self._per_s)
        self._filled_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True


_unrecorded: Final[ContextVar[bytes | None]] = ContextVar("unrecorded", default=None)
_budget: Final = _Budget(TRACES_PER_S)


def span(
    name: str,
    *,
    cause: Record | None = None,
    links: Sequence[Record] = (),
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Mapping[str, AttributeValue] | None = None,
) -> AbstractContextManager[Span]:
    """A span around a block. Its parent is the writer of `cause`, or the current span; `links` are further causes.

    A trace is recorded as a whole or not at all: its first span decides (`TRACES_PER_S`), and
    `traceparent` carries the decision.
    """
    header = _not_recorded(cause, links)
    return _recorded(name, cause, links, kind, attributes) if header is None else _Unrecorded(header)


def _not_recorded(cause: Record | None, links: Sequence[Record]) -> bytes | None:
    """The `traceparent` to pass on where nothing is recorded; None where a span is."""
    if cause is not None and (header := cause.headers.get(names.TRACEPARENT)):
        return header if header.endswith(_NOT_SAMPLED) else None
    if (outer := _unrecorded.get()) is not None:
        return outer
    if trace.get_current_span().get_span_context().is_valid:
        return None
    linked = [header for record in links if (header := record.headers.get(names.TRACEPARENT))]
    if linked:
        return linked[0] if all(header.endswith(_NOT_SAMPLED) for header in linked) else None
    return None if _budget.take() else b"00-%s-%s-00" % (os.urandom(16).hex().encode(), os.urandom(8).hex().encode())


@contextmanager
def _recorded(
    name: str,
    cause: Record | None,
    links: Sequence[Record],
    kind: SpanKind,
    attributes: Mapping[str, AttributeValue] | None,
) -> Iterator[Span]:
    found = [
        context
        for record in links
        if not record.headers.get(names.TRACEPARENT, b"").endswith(_NOT_SAMPLED)
        and (context := span_context_of(record)) is not None
    ]
    token = _unrecorded.set(None)
    try:
        with _tracer.start_as_current_span(
            name,
            context=None if cause is None else context_of(cause),
            kind=kind,
            links=[Link(context) for context in found],
            attributes=attributes,
        ) as active:
            yield active
    finally:
        _unrecorded.reset(token)


def traceparent() -> bytes | None:
    """The current span as a `traceparent` header value."""
    if (header := _unrecorded.get()) is not None:
        return header
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    value = carrier.get(names.TRACEPARENT)
    return None if value is None else value.encode("ascii")
