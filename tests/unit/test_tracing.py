"""A run's spans: their shape, where they go, and what it costs when nobody takes them."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from etlcli.errors import UsageError
from etlcli.observe.status import FAILED, SUCCEEDED, Status, StepStatus
from etlcli.observe.tracing import Tracing

Warnings = list[tuple[str, dict[str, Any]]]


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OTEL_") or name in ("TRACEPARENT", "TRACESTATE"):
            monkeypatch.delenv(name)


def status(**more: Any) -> Status:
    steps = [
        StepStatus(id="read", uses="read", kind="source", above=None, received=5, sent=4, rejected={"bad_json": 1}),
        StepStatus(id="late", uses="filter", kind="stage", above="read", received=4, sent=1, discarded={"filtered": 3},
                   seconds=0.5, retries=2),
        StepStatus(id="write", uses="write", kind="sink", above="late", received=1, sent=1, bytes_out=10),
    ]  # fmt: skip
    return Status(run="0011223344556677", recipe="r", path="r.yaml", pid=1, version="0.1.0", started=1000.0, now=1002.5,
                  steps=steps, **{"state": SUCCEEDED, "exit_code": 0, "received": 5, **more})  # fmt: skip


def observed(tracing: Tracing, last: Status) -> None:
    tracing.begin(lambda: last)
    tracing.end(last)


def collected(last: Status) -> list[Any]:
    exporter = InMemorySpanExporter()
    warnings: Warnings = []
    log = lambda level, event, **fields: warnings.append((event, fields))  # noqa: E731
    observed(Tracing(log, exporters=lambda: [exporter]), last)
    assert not warnings
    return list(exporter.get_finished_spans())


def test_a_span_for_the_run_and_one_for_each_step() -> None:
    *steps, run = collected(status())
    assert run.name == "etl run r" and run.parent is None and run.status.status_code is StatusCode.UNSET
    assert (run.attributes["etl.run"], run.attributes["etl.exit_code"]) == ("0011223344556677", 0)
    assert (run.start_time, run.end_time) == (1000 * 10**9, 1002.5 * 10**9)
    assert [step.name for step in steps] == ["read", "late", "write"]
    assert {step.parent.span_id for step in steps} == {run.context.span_id}
    assert {step.context.trace_id for step in steps} == {run.context.trace_id}
    late = steps[1].attributes
    assert {name: late[name] for name in ("etl.in", "etl.out", "etl.discarded.filtered", "etl.retries", "etl.seconds")} == {
        "etl.in": 4, "etl.out": 1, "etl.discarded.filtered": 3, "etl.retries": 2, "etl.seconds": 0.5,
    }  # fmt: skip
    assert steps[0].attributes["etl.rejected.bad_json"] == 1
    assert run.resource.attributes["service.name"] == "etl"


def test_a_failed_run_says_why() -> None:
    run = collected(status(state=FAILED, error="in.ndjson:3: schema", exit_code=1))[-1]
    assert (run.status.status_code, run.status.description) == (StatusCode.ERROR, "in.ndjson:3: schema")


def test_the_environment_says_parent_name_and_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPARENT", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    monkeypatch.setenv("TRACESTATE", "a=1")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "nightly")
    run = collected(status())[-1]
    assert f"{run.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert f"{run.parent.span_id:016x}" == "b7ad6b7169203331"
    assert run.context.trace_state.get("a") == "1"
    assert run.resource.attributes["service.name"] == "nightly"
    monkeypatch.setenv("TRACEPARENT", "garbage")
    assert collected(status())[-1].parent is None
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    assert collected(status()) == []


@contextmanager
def collector(code: int, location: str = "") -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """A server that answers so, and what it is sent."""
    bodies: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            bodies.append((self.path, gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body))
            self.send_response(code)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", bodies
    finally:
        server.shutdown()
        server.server_close()


def _from_environment(last: Status, patience: float = 30.0) -> Warnings:
    warnings: Warnings = []
    observed(Tracing(lambda level, event, **fields: warnings.append((event, fields)), patience=patience), last)
    return warnings


def test_spans_go_to_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    with collector(200) as (url, bodies):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        assert _from_environment(status()) == []
    ((path, body),) = bodies
    assert path == "/v1/traces"
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    assert sorted(span.name for span in resource.scope_spans[0].spans) == ["etl run r", "late", "read", "write"]


def test_a_collector_that_refuses_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    with collector(400) as (url, _):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        ((event, fields),) = _from_environment(status())
    assert event == "not_sent" and "collector" in fields["to"]


def test_a_collector_that_does_not_answer_costs_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # connections wait in its queue for ever
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert _from_environment(status(), 0.3)[0][1]["reason"] == "no answer in 0.3 s"


def test_exporters_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert _from_environment(status()) == []
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "nothing_known")
    with pytest.raises(UsageError, match="nothing_known"):
        _from_environment(status())
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert _from_environment(status()) == []


def test_the_console_is_standard_error() -> None:
    code = (
        "from test_tracing import *\n"
        "tracing = Tracing(print)\n"
        "observed(tracing, status())\n"
    )  # fmt: skip
    env = {**os.environ, "OTEL_TRACES_EXPORTER": "console", "PYTHONPATH": os.path.dirname(__file__)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    first, _ = json.JSONDecoder().raw_decode(done.stderr.decode())
    assert first["name"] == "read"
