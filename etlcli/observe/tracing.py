"""A run as OpenTelemetry spans: one for the run, below it one for each step, with the counts as attributes.

The spans are made when the run is over, from what is known of it then, so that they cost nothing before. All steps of a run
work at the same time, so their spans are as long as the run; `etl.seconds` is how long a step was at work. Where the spans
go, which of them are kept, and what the service is called, the OTEL_* variables of the environment say; TRACEPARENT says
which span the run's is a child of.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from etlcli.errors import UsageError
from etlcli.observe.courier import PATIENCE, Courier, hush
from etlcli.observe.status import FAILED, Observer, Status, StepStatus

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

_NAME = "etl"
_PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
_NANO = 1_000_000_000


class Tracing(Observer):
    """Raises UsageError where the libraries, or the exporter that the environment names, are not there."""

    waits = True

    def __init__(
        self,
        log: Callable[..., None],
        *,
        patience: float = PATIENCE,
        exporters: Callable[[], list[SpanExporter]] | None = None,
    ) -> None:
        """`exporters`: where to, if not where the environment says."""
        try:
            from opentelemetry.sdk.trace.export import SpanExportResult
        except ImportError:
            raise UsageError("tracing needs OpenTelemetry", hint="pip install 'etlcli[otel]'") from None
        hush("opentelemetry", "urllib3")
        self._success = SpanExportResult.SUCCESS
        try:
            self._exporters = (exporters or _exporters)()
        except ValueError as error:
            raise UsageError(f"OpenTelemetry refuses its settings: {error}", hint="see the OTEL_* variables") from None
        self._courier = Courier("spans", log, "the OpenTelemetry collector", patience)

    def end(self, last: Status) -> None:
        self._courier.send(lambda: self._export(last))
        self._courier.close()

    def _export(self, last: Status) -> None:
        spans = _spans(last)
        failed = False
        for exporter in self._exporters:
            failed |= bool(spans) and exporter.export(spans) is not self._success
            exporter.shutdown()
        if failed:
            raise _RefusedError


class _RefusedError(Exception):
    """An exporter could not send the spans."""


def _exporters() -> list[SpanExporter]:
    """Those that OTEL_TRACES_EXPORTER names; by default OTLP, by the protocol that the environment says."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    names = [name.strip() for name in os.environ.get("OTEL_TRACES_EXPORTER", "otlp").split(",")]
    return [_exporter(name) for name in names if name not in ("", "none")]


def _exporter(name: str) -> SpanExporter:
    if name == "console":  # standard output is for records
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter(out=sys.stderr)
    from importlib.metadata import entry_points

    shown = name
    if name == "otlp":
        environ = os.environ
        protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        protocol = (protocol or "http/protobuf").strip()
        name, shown = _PROTOCOLS.get(protocol, protocol), f"otlp ({protocol})"
    for entry in entry_points(group="opentelemetry_traces_exporter", name=name):
        exporter: SpanExporter = entry.load()()
        return exporter
    raise UsageError(
        f"OpenTelemetry has no exporter {shown!r}",
        hint="see OTEL_TRACES_EXPORTER and OTEL_EXPORTER_OTLP_PROTOCOL; pip install 'etlcli[otel]' brings http/protobuf",
    )


def _spans(last: Status) -> list[ReadableSpan]:
    """The run's span, and those of its steps; none that the sampler does not want."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    kept: list[ReadableSpan] = []

    class Keeping(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            if span.context and span.context.trace_flags.sampled:
                kept.append(span)

    provider = TracerProvider(resource=Resource.create(_resource()), shutdown_on_exit=False)
    provider.add_span_processor(Keeping())
    tracer = provider.get_tracer(_NAME, last.version)
    # Environment variables are spelled in capitals, the headers whose place they take are not.
    carrier = {name: os.environ[name.upper()] for name in ("traceparent", "tracestate") if name.upper() in os.environ}
    parent = TraceContextTextMapPropagator().extract(carrier)
    start, end = int(last.started * _NANO), int(max(last.now, last.started) * _NANO)
    run = tracer.start_span(f"etl run {last.recipe}", parent, SpanKind.INTERNAL, _of_run(last), start_time=start)
    if last.state == FAILED:
        run.set_status(Status(StatusCode.ERROR, last.error))
    within = set_span_in_context(run, parent)
    for step in last.steps:
        tracer.start_span(step.id, within, SpanKind.INTERNAL, _of_step(step), start_time=start).end(end)
    run.end(end)
    return kept


def _resource() -> dict[str, str]:
    """What the environment does not say of the service."""
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return {} if named else {"service.name": _NAME}


def _of_run(last: Status) -> dict[str, Any]:
    return _given(
        {
            "etl.run": last.run,
            "etl.recipe": last.recipe,
            "etl.recipe_digest": last.digest,
            "etl.resumed": last.resumed,
            "etl.exit_code": last.exit_code,
            "etl.received": last.received,
            "etl.read_bytes": last.read,
            "etl.workers": last.workers,
        }
    )


def _of_step(step: StepStatus) -> dict[str, Any]:
    counts: dict[str, Mapping[str, float]] = {
        "discarded": step.discarded,
        "rejected": step.rejected,
        "absorbed": step.absorbed,
        "healed": step.healed,
        "blocked_seconds": step.blocked,
    }
    return _given(
        {
            "etl.step": step.id,
            "etl.uses": step.uses,
            "etl.kind": step.kind,
            "etl.above": step.above,
            "etl.in": step.received,
            "etl.made": step.made,
            "etl.out": step.sent,
            "etl.retries": step.retries,
            "etl.cache_hits": step.cache_hits,
            "etl.cache_misses": step.cache_misses,
            "etl.bytes_in": step.bytes_in,
            "etl.bytes_out": step.bytes_out,
            "etl.seconds": step.seconds,
            **{f"etl.{name}.{of}": value for name, each in counts.items() for of, value in each.items()},
        }
    )


def _given(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}
