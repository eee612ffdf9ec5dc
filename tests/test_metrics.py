"""Metrics through their three doors, into the real programs that read them."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import prometheus
import pytest
from conftest import BIN, environment, run_etl
from prometheus import PASSWORD, USER, fetch, free_port, gateway, until

pytestmark = pytest.mark.skipif(bool(prometheus.missing()), reason="Prometheus is not installed")

GOOD = b"".join(b'{"id":%d,"n":%d}\n' % (number, number % 7) for number in range(2000))
BAD = GOOD + b"no record\n"


class Work:
    """A directory with a recipe in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.recipe: dict[str, Any] = {
            "version": 1,
            "name": "night/ly",
            "source": {"uses": "read", "with": {"paths": ["in.ndjson"]}},
            "steps": [
                {"uses": "filter", "with": {"expr": "n < 6"}},
                {"id": "once", "uses": "dedupe-cache", "with": {"key": ["n"]}},
            ],
            "sink": {"uses": "write", "with": {"path": "out.ndjson"}},
        }
        (directory / "in.ndjson").write_bytes(GOOD)

    def write(self, **changes: Any) -> None:
        self.recipe |= changes
        (self.directory / "recipe.yaml").write_text(json.dumps(self.recipe))

    def run(self, *args: str) -> subprocess.CompletedProcess[bytes]:
        return run_etl("run", "recipe.yaml", *args, cwd=self.directory)

    def start(self, **more: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([BIN / "etl", "run", "recipe.yaml"], cwd=self.directory, env=environment(), **more)


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


@pytest.fixture(scope="module")
def pushgateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with gateway(tmp_path_factory.mktemp("gateway")) as url:
        yield url


def samples(text: str) -> dict[str, float]:
    """Series, their labels sorted, without those that the gateway adds."""
    found = {}
    for name, labels, value in re.findall(r"^(\w+)(?:\{(.*)\})? (\S+)$", text, re.MULTILINE):
        own = sorted(
            label for label in re.findall(r'\w+="[^"]*"', labels) if not label.startswith(("job=", "instance="))
        )
        found[f"{name}{{{','.join(own)}}}"] = float(value)
    return found


def of_group(url: str, name: str) -> dict[str, float]:
    lines = [line for line in fetch(f"{url}/metrics").splitlines() if f'recipe="{name}"' in line]
    return samples("\n".join(lines))


def count(series: dict[str, float], name: str, recipe: str, **labels: str) -> float | None:
    text = ",".join(sorted(f'{label}="{value}"' for label, value in {"recipe": recipe, **labels}.items()))
    return series.get(f"{name}{{{text}}}")


def test_a_good_run_replaces_its_group_and_a_failed_one_leaves_the_last_success(work: Work, pushgateway: str) -> None:
    work.write(name="good/then bad", metrics={"pushgateway": pushgateway})
    assert work.run().returncode == 0
    good = of_group(pushgateway, "good/then bad")
    expected = {("read", "out"): 2000, ("filter", "out"): 1715, ("filter", "discarded"): 285, ("once", "out"): 6,
                ("once", "in"): 1715, ("write", "out"): 6}  # fmt: skip
    for (step, outcome), value in expected.items():
        assert count(good, "etl_records_total", "good/then bad", step=step, outcome=outcome) == value
    assert count(good, "etl_bytes_total", "good/then bad", step="read", direction="in") == len(GOOD)
    assert count(good, "etl_bytes_total", "good/then bad", step="write", direction="out") == os.path.getsize(
        work.directory / "out.ndjson"
    )
    assert count(good, "etl_discarded_total", "good/then bad", step="once", reason="duplicate") == 1709
    assert count(good, "etl_cache_hits_total", "good/then bad", step="once") == 1709
    assert count(good, "etl_run_exit_code", "good/then bad") == 0
    success = count(good, "etl_last_success_timestamp_seconds", "good/then bad")
    assert success

    (work.directory / "in.ndjson").write_bytes(BAD)
    assert work.run().returncode == 1
    bad = of_group(pushgateway, "good/then bad")
    assert count(bad, "etl_last_success_timestamp_seconds", "good/then bad") == success
    assert count(bad, "etl_last_run_timestamp_seconds", "good/then bad") > success  # type: ignore[operator]
    assert count(bad, "etl_run_exit_code", "good/then bad") == 1
    assert count(bad, "etl_rejected_total", "good/then bad", step="read", code="bad_json") == 1

    (work.directory / "in.ndjson").write_bytes(GOOD)
    assert work.run().returncode == 0
    healed = of_group(pushgateway, "good/then bad")
    assert count(healed, "etl_run_exit_code", "good/then bad") == 0
    # PUT: what the failed run alone had is gone.
    assert count(healed, "etl_rejected_total", "good/then bad", step="read", code="bad_json") is None


def test_a_run_that_goes_on_is_seen(work: Work, pushgateway: str) -> None:
    work.write(
        name="going on",
        source={"uses": "read", "with": {"paths": ["-"]}},
        metrics={"pushgateway": pushgateway, "every": "50ms"},
    )
    process = work.start(stdin=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(GOOD)
    process.stdin.flush()
    until(
        lambda: (
            count(of_group(pushgateway, "going on"), "etl_records_total", "going on", step="read", outcome="out")
            == 2000
        )
    )
    assert count(of_group(pushgateway, "going on"), "etl_run_exit_code", "going on") is None
    waited = count(of_group(pushgateway, "going on"), "etl_blocked_seconds_total", "going on", step="read", on="input")
    assert waited
    process.stdin.close()
    assert process.wait(60) == 0
    until(lambda: count(of_group(pushgateway, "going on"), "etl_run_exit_code", "going on") == 0)


def test_basic_auth_whose_password_is_shown_nowhere(work: Work, tmp_path: Path) -> None:
    with gateway(tmp_path, password=True) as url:
        secret = PASSWORD.replace("/", "%2F")
        work.write(metrics={"pushgateway": url.replace("http://", f"http://{USER}:{secret}@")})
        done = work.run("--log-level", "debug")
        assert done.returncode == 0
        assert b"push_failed" not in done.stderr
        assert not re.search(rb"pass(/|%2F)word", done.stderr)
        work.write(metrics={"pushgateway": url.replace("http://", f"http://{USER}:wrong%20one@")})
        done = work.run("--log-level", "debug")
        assert done.returncode == 0
        assert b"push_failed" in done.stderr
        assert b"401" in done.stderr
        assert b"wrong" not in done.stderr


def test_a_gateway_that_is_down_costs_a_warning(work: Work) -> None:
    work.write(metrics={"pushgateway": f"http://127.0.0.1:{free_port()}", "every": "10ms"})
    done = work.run()
    assert done.returncode == 0
    assert done.stderr.count(b"push_failed") == 1
    assert (work.directory / "out.ndjson").exists()


def test_a_gateway_that_never_answers_costs_a_bounded_time(work: Work) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = "{}:{}".format(*silent.getsockname())
        work.write(metrics={"pushgateway": f"http://{address}", "timeout": "200ms"})
        done = work.run()
    assert done.returncode == 0
    assert done.stderr.count(b"push_failed") == 1


def test_a_gateway_that_answers_a_byte_now_and_then_costs_a_bounded_time(work: Work) -> None:
    def dribble(connection: socket.socket) -> None:
        try:
            while True:
                connection.send(b"H")
                threading.Event().wait(0.05)
        except OSError:
            pass

    def accept() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=dribble, args=(connection,), daemon=True).start()

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        threading.Thread(target=accept, daemon=True).start()
        work.write(metrics={"pushgateway": "http://{}:{}".format(*listening.getsockname()), "timeout": "200ms"})
        done = work.run()
    assert done.returncode == 0
    assert done.stderr.count(b"push_failed") == 1


@contextmanager
def answering(status: int, location: str = "") -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            self.end_headers()

        do_PUT = do_POST = _answer

        def log_message(self, *_: Any) -> None:
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    try:
        yield "http://{}:{}".format(*httpd.server_address)
    finally:
        httpd.shutdown()
        httpd.server_close()


@pytest.mark.parametrize("fails", [False, True])
def test_a_gateway_that_names_another_address_gets_nothing_sent_there(work: Work, fails: bool) -> None:
    """Neither the password, nor a request without the series, which would look as if it had worked."""
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        answering(302, "http://{}:{}/".format(*other.getsockname())) as url,
    ):
        work.write(metrics={"pushgateway": url.replace("//", "//u:secret@")})
        if fails:
            (work.directory / "in.ndjson").write_text("[]\n")
        done = work.run()
        other.settimeout(0)
        with pytest.raises(BlockingIOError):
            other.accept()
    assert done.returncode == int(fails)
    assert b"push_failed" in done.stderr and b"302" in done.stderr and b"secret" not in done.stderr


@pytest.mark.parametrize("status", [400, 500])
def test_a_gateway_that_refuses_costs_a_warning(work: Work, status: int) -> None:
    with answering(status) as url:
        work.write(metrics={"pushgateway": url})
        done = work.run()
    assert done.returncode == 0
    assert b"push_failed" in done.stderr
    assert str(status).encode() in done.stderr


def test_the_text_file_is_as_node_exporter_wants_it(work: Work) -> None:
    work.write(metrics={"textfile": "etl.prom"})
    assert work.run().returncode == 0
    text = (work.directory / "etl.prom").read_bytes()
    lint = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    assert (lint.returncode, lint.stdout, lint.stderr) == (0, b"", b"")
    good = samples(text.decode())
    assert count(good, "etl_records_total", "night/ly", step="write", outcome="out") == 6
    assert os.stat(work.directory / "etl.prom").st_mode & 0o444 == 0o444 & ~_umask()

    (work.directory / "in.ndjson").write_bytes(BAD)
    assert work.run().returncode == 1
    text = (work.directory / "etl.prom").read_bytes()
    lint = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    assert (lint.returncode, lint.stdout, lint.stderr) == (0, b"", b"")
    bad, name = samples(text.decode()), "etl_last_success_timestamp_seconds"
    assert count(bad, name, "night/ly") == count(good, name, "night/ly")
    assert count(bad, "etl_run_exit_code", "night/ly") == 1


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_text_file_that_cannot_be_written_costs_a_warning(work: Work) -> None:
    (work.directory / "file").write_text("")
    work.write(metrics={"textfile": "file/etl.prom", "every": "10ms"})
    done = work.run()
    assert done.returncode == 0
    assert done.stderr.count(b"textfile_failed") == 1


def test_a_pipe_in_the_place_of_the_text_file_stays_one(work: Work) -> None:
    os.mkfifo(work.directory / "etl.prom")
    work.write(metrics={"textfile": "etl.prom", "every": "10ms"})
    done = work.run()
    assert done.returncode == 0
    assert done.stderr.count(b"is not a plain file") == 1
    assert stat.S_ISFIFO(os.stat(work.directory / "etl.prom").st_mode)


def test_prometheus_scrapes_a_run(work: Work, tmp_path: Path) -> None:
    port = free_port()
    work.write(
        source={"uses": "read", "with": {"paths": ["-"]}},
        metrics={"listen": f"127.0.0.1:{port}"},
    )
    process = work.start(stdin=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(GOOD)
    process.stdin.flush()
    with prometheus.server(tmp_path, f"127.0.0.1:{port}") as ask:
        found = until(lambda: ask('etl_records_total{step="read",outcome="out"} == 2000'))
        assert found[0]["metric"]["recipe"] == "night/ly"
        assert until(lambda: ask("rate(etl_blocked_seconds_total{on='input'}[5s]) > 0.5"))
        assert ask("histogram_quantile(0.9, etl_step_seconds_bucket{step='filter'})")
    process.stdin.close()
    assert process.wait(60) == 0


def test_an_address_that_is_taken_costs_a_warning(work: Work) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        work.write(metrics={"listen": f"127.0.0.1:{other.getsockname()[1]}"})
        done = work.run()
    assert done.returncode == 0
    assert b"listen_failed" in done.stderr


class Exported:
    """A run that waits for input and is scraped."""

    def __init__(self, work: Work, pushgateway: str | None = None, timeout: str = "100ms", **more: Any) -> None:
        self.url = f"http://127.0.0.1:{free_port()}/metrics"
        metrics = {"listen": self.url[7:-8], "textfile": "etl.prom", "every": "50ms", "timeout": timeout}
        work.write(
            source={"uses": "read", "with": {"paths": ["-"]}},
            metrics=metrics | ({"pushgateway": pushgateway} if pushgateway else {}),
        )
        self.work = work
        self.run = work.start(stdin=subprocess.PIPE, stderr=subprocess.PIPE, **more)
        assert self.run.stdin
        self.run.stdin.write(GOOD)
        self.run.stdin.flush()
        until(lambda: prometheus.answers(self.url))
        until(lambda: self.read(fetch(self.url)) == 2000)
        until(lambda: self.read(self.file()) == 2000)

    def file(self) -> str:
        path = self.work.directory / "etl.prom"
        return path.read_text() if path.exists() else ""

    def read(self, text: str) -> float | None:
        return count(samples(text), "etl_records_total", "night/ly", step="read", outcome="out")

    @property
    def exporter(self) -> int:
        """The process that shows the metrics: the only child of a run without workers."""
        (child,) = Path(f"/proc/{self.run.pid}/task/{self.run.pid}/children").read_text().split()
        return int(child)

    def exit_code(self) -> float | None:
        return count(samples(self.file()), "etl_run_exit_code", "night/ly")


def test_a_scrape_does_not_wait_for_the_run(work: Work) -> None:
    exported = Exported(work)
    exported.run.send_signal(signal.SIGSTOP)
    assert exported.read(fetch(exported.url)) == 2000
    exported.run.send_signal(signal.SIGCONT)
    _, said = exported.run.communicate(timeout=60)
    assert (exported.run.returncode, said) == (0, b"")
    assert not prometheus.answers(exported.url)


def test_how_a_run_ended_is_shown_though_the_exporter_was_killed(work: Work) -> None:
    exported = Exported(work)
    os.kill(exported.exporter, signal.SIGKILL)
    until(lambda: not prometheus.answers(exported.url))
    assert exported.exit_code() is None
    _, said = exported.run.communicate(timeout=60)
    assert exported.run.returncode == 0
    assert said.count(b"metrics_failed") == said.count(b"SIGKILL") == 1
    assert exported.exit_code() == 0


def test_an_exporter_that_does_not_go_on_costs_a_bounded_time(work: Work) -> None:
    exported = Exported(work)
    exporter = exported.exporter
    os.kill(exporter, signal.SIGSTOP)
    _, said = exported.run.communicate(timeout=60)
    assert exported.run.returncode == 0
    assert b"metrics_failed" in said
    assert not Path(f"/proc/{exporter}").exists()


def test_the_exporter_ends_with_a_run_that_is_killed(work: Work) -> None:
    work.write(runtime={"workers": 2})
    exported = Exported(work)
    exported.run.kill()
    exported.run.communicate(timeout=60)
    until(lambda: not prometheus.answers(exported.url))
    assert exported.exit_code() is None


def test_an_exporter_is_missed_though_nobody_waits_for_children(work: Work) -> None:
    exported = Exported(work, preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
    os.kill(exported.exporter, signal.SIGKILL)
    until(lambda: not prometheus.answers(exported.url))
    _, said = exported.run.communicate(timeout=60)
    assert exported.run.returncode == 0
    assert said.count(b"metrics_failed") == 1
    assert exported.exit_code() == 0


def test_the_exporter_does_not_outlive_a_run_that_a_second_signal_ends(work: Work) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        exported = Exported(work, pushgateway="http://{}:{}".format(*silent.getsockname()), timeout="60s")
        exporter = exported.exporter
        exported.run.send_signal(signal.SIGTERM)
        until(lambda: exported.exit_code() == 143)  # the file is closed, and the gateway waited for
        assert exported.run.poll() is None
        exported.run.send_signal(signal.SIGTERM)
        exported.run.communicate(timeout=20)
        assert exported.run.returncode == -signal.SIGTERM
        until(
            lambda: not Path(f"/proc/{exporter}/cmdline").exists() or not Path(f"/proc/{exporter}/cmdline").read_bytes()
        )
        assert not prometheus.answers(exported.url)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_for_the_whole_group_is_shown_as_how_the_run_ended(work: Work, number: signal.Signals) -> None:
    exported = Exported(work, start_new_session=True)
    os.killpg(exported.run.pid, number)
    exported.run.communicate(timeout=60)
    assert exported.run.returncode == -number
    assert exported.exit_code() == 128 + number


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        ({}, b"metrics needs one of"),
        ({"listen": "9464"}, b"expected HOST:PORT"),
        ({"pushgateway": "localhost:9091"}, b"expected a URL"),
        ({"pushgatway": "http://localhost:9091"}, b"pushgateway"),
    ],
)
def test_a_section_that_cannot_be_is_refused(work: Work, metrics: dict[str, str], says: bytes) -> None:
    work.write(metrics=metrics)
    done = work.run()
    assert done.returncode == 78
    assert says in done.stderr


def test_no_counter_goes_back_when_a_killed_run_is_gone_on_with(work: Work) -> None:
    wide = b"".join(b'{"id":%d,"n":%d,"pad":"%s"}\n' % (number, number % 7, b"x" * 3000) for number in range(2000))
    (work.directory / "in.ndjson").write_bytes(wide)
    slow = {"uses": "retry-wrap", "with": {"command": ["sh", "-c", "sleep 0.02; cat"], "size": 20}}
    work.write(
        steps=[*work.recipe["steps"][:1], slow, {"uses": "sort", "with": {"by": ["id"]}}],
        checkpoint={"dir": "state", "every": "0s"},
        metrics={"textfile": "etl.prom", "every": "10ms"},
        runtime={"workers": 1},
    )
    shown: list[dict[str, float]] = []

    def look() -> dict[str, float]:
        try:
            shown.append(samples((work.directory / "etl.prom").read_text()))
        except FileNotFoundError:
            return {}
        return shown[-1]

    first = work.start(stderr=subprocess.DEVNULL)
    until(lambda: (count(look(), "etl_records_total", "night/ly", step="retry-wrap", outcome="in") or 0) > 900)
    first.send_signal(signal.SIGKILL)
    first.wait(60)
    second = work.start(stderr=subprocess.DEVNULL)
    while second.poll() is None:
        look()
        threading.Event().wait(0.01)
    assert second.returncode == 0
    look()
    # The counters are there from the first version on, also when the run has just been gone on with.
    assert all(any(name.startswith("etl_records_total") for name in each) for each in shown)
    counters = [name for name in shown[-1] if re.match(r"\w+_(total|count|sum|bucket)\{", name)]
    assert len(counters) > 50
    for name in counters:
        values = [each[name] for each in shown if name in each]
        assert values == sorted(values), name
    assert count(shown[-1], "etl_records_total", "night/ly", step="read", outcome="out") == 2000
    assert count(shown[-1], "etl_records_total", "night/ly", step="write", outcome="out") == 1715


def test_a_run_that_failed_and_is_gone_on_with_has_abandoned_nothing(work: Work) -> None:
    """What a failed run has rejected was shown, and stays; what was on its way when it ended another process takes up."""
    flaky = {"uses": "retry-wrap", "with": {"command": ["sh", "-c", "test ! -e broken && cat"], "size": 100}}
    work.write(
        steps=[flaky, *work.recipe["steps"]],
        checkpoint={"dir": "state", "every": "0s"},
        metrics={"textfile": "etl.prom"},
        runtime={"workers": 1},
    )
    (work.directory / "broken").touch()
    assert work.run().returncode == 1
    failed = samples((work.directory / "etl.prom").read_text())
    code = {"step": "retry-wrap", "code": "command_failed"}
    assert count(failed, "etl_rejected_total", "night/ly", **code) == 1
    (work.directory / "broken").unlink()
    assert work.run().returncode == 0
    text = (work.directory / "etl.prom").read_text()
    good = samples(text)
    assert "abandoned" not in text
    assert count(good, "etl_rejected_total", "night/ly", **code) == 1
    assert count(good, "etl_records_total", "night/ly", step="retry-wrap", outcome="discarded") == 0
    assert count(good, "etl_records_total", "night/ly", step="retry-wrap", outcome="out") == 2000
