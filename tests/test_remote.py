"""URLs as inputs, read from a server of our own on loopback."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import environment, run_etl

import etlcli
from etlcli.errors import InputMissingError, InputOutputError, ServiceUnreachableError, UsageError
from etlcli.formats import format_of
from etlcli.io import remote
from etlcli.io.inputs import expand, open_input
from etlcli.io.masking import masked

LINES = b'{"a":1}\n{"a":2}\n'
BASIC = "Basic " + base64.b64encode(b"me:p@ss").decode()


class Server(ThreadingHTTPServer):
    """`requests` has (path, headers) of each; `release` ends what hangs."""

    daemon_threads = True
    requests: list
    release: threading.Event

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        tries = self.server.paths().count(self.path)
        self.server.requests.append((self.path, self.headers))
        name = self.path.partition("?")[0]
        if name.startswith("/to/"):
            self.answer(302, b"gone on", Location=self.path[len("/to/") :])
        elif name == "/secret.ndjson" and self.headers["Authorization"] != BASIC:
            self.answer(401, b"no")
        elif name == "/busy.ndjson" and tries == 0:
            self.answer(503, b"busy")
        elif name == "/limited.ndjson" and tries == 0:
            self.answer(429, b"slower", **{"Retry-After": "7"})
        elif name == "/later.ndjson":
            self.answer(503, b"down", **{"Retry-After": "86400"})
        elif name == "/down.ndjson":
            self.answer(500, b"down")
        elif name == "/short.ndjson":
            self.answer(200, LINES, length=len(LINES) + 8)
        elif name == "/short-chunked.ndjson":
            self.chunks(b'{"a":1}\n', end=b"")
        elif name == "/half-a-chunk.ndjson":
            self.chunks(b'{"a":1}\n', end=b'ff\r\n{"a":2}\n')
        elif name == "/chunked.ndjson":
            self.chunks(b'{"a":1}\n', b'{"a":2}\n', end=b"0\r\n\r\n")
        elif name == "/hang.ndjson":
            self.server.release.wait(20)
        elif name == "/hang-in-body.ndjson":
            self.answer(200, b'{"a":1}\n', length=100, close=False)
            self.server.release.wait(20)
        elif name == "/slow.ndjson":
            self.answer(200, b'{"a":1}\n', length=len(LINES), close=False)
            self.server.release.wait(20)
            self.wfile.write(b'{"a":2}\n')
        elif name == "/drop.ndjson" and tries == 0:
            self.close_connection = True
        elif name == "/table":
            self.answer(200, b"a,b\n1,x\n2,y\n", **{"Content-Type": "text/csv; charset=utf-8"})
        elif name == "/table.csv":
            self.answer(200, b"a,b\n1,x\n2,y\n")
        elif name == "/brotli.ndjson":
            self.answer(200, LINES, **{"Content-Encoding": "br"})
        elif name == "/lines.ndjson.gz":
            self.answer(200, gzip.compress(LINES))
        elif name == "/text.ndjson.gz":
            self.answer(200, LINES)
        elif name == "/bad.ndjson":
            self.answer(200, LINES + b"oops\n")
        elif name in ("/missing", "/forbidden"):
            self.answer({"/missing": 404, "/forbidden": 403}[name], b"<html>no</html>")
        else:
            self.answer(200, LINES)

    def answer(self, status: int, body: bytes, length: int | None = None, close: bool = True, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = close

    def chunks(self, *parts: bytes, end: bytes) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in parts:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        self.wfile.write(end)
        self.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = Server(("127.0.0.1", 0), Handler)
    made.requests, made.release = [], threading.Event()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.release.set()
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was paused, without pausing."""
    paused: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", paused.append)
    return paused


def _content(url: str) -> bytes:
    with closing(open_input(url)) as stream:
        return b"".join(iter(lambda: stream.read(5), b""))


def _with_credentials(server: Server, path: str) -> str:
    return f"http://me:p%40ss@127.0.0.1:{server.server_port}{path}"


@pytest.mark.parametrize("path", ["/lines.ndjson", "/lines.ndjson.gz", "/lines.ndjson.gz?v=1.csv", "/chunked.ndjson"])
def test_read_gives_what_a_file_gives(server: Server, path: str) -> None:
    done = run_etl("read", server.url + path)
    assert (done.returncode, done.stdout) == (0, LINES), done.stderr
    assert server.requests[0][1]["User-Agent"] == f"etl/{etlcli.__version__}"


def test_a_body_longer_than_any_buffer_is_whole(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    body = b"".join(b'{"a":%d}\n' % number for number in range(200_000))
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.answer(200, body))
    assert _content_in_blocks(server.url) == body


def _content_in_blocks(url: str) -> bytes:
    with closing(open_input(url)) as stream:
        return b"".join(iter(lambda: stream.read(1 << 16), b""))


def test_the_suffix_says_the_format_and_else_the_content_type(server: Server) -> None:
    wanted = b'{"a":1,"b":"x"}\n{"a":2,"b":"y"}\n'
    for path in ("/table", "/table.csv"):
        assert run_etl("read", server.url + path).stdout == wanted
    assert format_of("/x.tsv", "text/csv") == "tsv"
    assert format_of("/x.php", "application/json") == "json"


def test_other_commands_and_lookup_read_urls(server: Server) -> None:
    table = f"{_with_credentials(server, '/to//table')}"
    done = run_etl("lookup", "--on", "a", "--from", table, f"{server.url}/lines.ndjson")
    assert done.stdout == b'{"a":1,"b":"x"}\n{"a":2,"b":"y"}\n', done.stderr
    assert run_etl("filter", "a > 1", f"{server.url}/lines.ndjson").stdout == b'{"a":2}\n'


def test_a_recipe_reads_urls_and_a_dry_run_asks_no_server(server: Server, tmp_path: Path) -> None:
    url = _with_credentials(server, "/lines.ndjson?x=[1]*")
    (tmp_path / "r").mkdir()
    recipe = {
        "version": 1,
        "source": {"uses": "read", "with": {"paths": [url]}},
        "steps": [{"uses": "lookup", "with": {"on": ["a"], "from": f"{server.url}/table"}}],
        "sink": {"uses": "write", "with": {"path": "out.ndjson"}},
    }
    (tmp_path / "r" / "recipe.yaml").write_text(json.dumps(recipe))
    checked = run_etl("run", "r/recipe.yaml", "--dry-run", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert server.requests == []
    assert b"p%40ss" not in checked.stdout + checked.stderr
    done = run_etl("run", "r/recipe.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r" / "out.ndjson").read_bytes() == b'{"a":1,"b":"x"}\n{"a":2,"b":"y"}\n'


def test_P1_a_body_cut_short_publishes_nothing(server: Server, tmp_path: Path) -> None:
    for path in ("/short.ndjson", "/short-chunked.ndjson", "/half-a-chunk.ndjson"):
        done = run_etl("read", server.url + path, "-o", "out.ndjson", cwd=tmp_path)
        assert done.returncode == 74, (path, done.stderr)
        assert b"cut short" in done.stderr
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("path", "code"), [("/missing", 66), ("/forbidden", 66), ("/secret.ndjson", 66),
                                            ("/later.ndjson", 69), ("/brotli.ndjson", 65), ("/text.ndjson.gz", 65)])  # fmt: skip
def test_exit_codes(server: Server, path: str, code: int, tmp_path: Path) -> None:
    done = run_etl("read", server.url + path, "-o", "out.ndjson", cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert (server.url + path).encode() in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert len(server.requests) == 1


def test_P6_credentials_are_sent_and_shown_nowhere(server: Server, tmp_path: Path) -> None:
    url = _with_credentials(server, "/secret.ndjson")
    assert run_etl("read", url).stdout == LINES
    bad = _with_credentials(server, "/bad.ndjson?token=hush&page=3")
    done = run_etl("read", bad, "--on-error", "quarantine", "--quarantine", "q", "--stats", "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    quarantined = (tmp_path / "q").read_bytes()
    assert f"http://***@127.0.0.1:{server.server_port}/bad.ndjson?token=***&page=3".encode() in quarantined
    refused = run_etl("read", _with_credentials(server, "/missing?token=hush"))
    twice = run_etl("lookup", "--on", "a", "--from", _with_credentials(server, "/bad.ndjson?token=hush"), stdin=LINES)
    malformed = run_etl("read", "http://me:p%40ss/hush@host/x")
    assert (refused.returncode, twice.returncode, malformed.returncode) == (66, 65, 2)
    for shown in (quarantined, done.stderr, refused.stderr, twice.stderr, malformed.stderr):
        assert b"ss@" not in shown and b"p%40ss" not in shown and b"hush" not in shown and b"me:" not in shown
    assert server.requests[1][0] == "/bad.ndjson?token=hush&page=3"


def test_P6_redirects_take_credentials_to_no_other_server(server: Server) -> None:
    other = f"http://localhost:{server.server_port}/lines.ndjson"
    assert _content(_with_credentials(server, "/to/" + other)) == LINES
    assert _content(_with_credentials(server, "/to//secret.ndjson")) == LINES
    assert [headers["Authorization"] for _, headers in server.requests] == [BASIC, None, BASIC, BASIC]


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x", "/to//to/"])
def test_redirects_elsewhere_are_refused(server: Server, target: str) -> None:
    url = f"{server.url}/to/{target}" if target != "/to//to/" else f"{server.url}/to/"
    with pytest.raises(InputMissingError, match="302"):
        open_input(url)


def test_a_redirect_from_https_to_http_is_refused() -> None:
    request = remote.web.Request("https://host/a")
    with pytest.raises(remote.HTTPError):
        remote._Redirects().redirect_request(request, None, 302, "", None, "http://host/a")  # type: ignore[arg-type]


def test_what_may_heal_is_tried_again(server: Server, pauses: list[float]) -> None:
    for path in ("/busy.ndjson", "/limited.ndjson", "/drop.ndjson"):
        assert _content(server.url + path) == LINES
    assert pauses == [remote.PAUSES[0], 7.0, remote.PAUSES[0]]


def test_tries_come_to_an_end(server: Server, pauses: list[float]) -> None:
    with pytest.raises(ServiceUnreachableError, match="500"):
        open_input(f"{server.url}/down.ndjson")
    assert len(server.requests) == len(remote.PAUSES) + 1
    assert tuple(pauses) == remote.PAUSES


def test_nobody_listens(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("http_proxy", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: refused
        with pytest.raises(ServiceUnreachableError, match="refused"):
            open_input(f"http://127.0.0.1:{taken.getsockname()[1]}/x")
    assert tuple(pauses) == remote.PAUSES


def test_a_server_that_hangs_costs_bounded_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "TIMEOUT", 0.2)
    with pytest.raises(ServiceUnreachableError, match="timed out"):
        open_input(f"{server.url}/hang.ndjson")
    with pytest.raises(InputOutputError, match="timed out"):
        _content(f"{server.url}/hang-in-body.ndjson")


def test_waiting_for_a_slow_body_loses_nothing(server: Server) -> None:
    with closing(open_input(f"{server.url}/slow.ndjson")) as stream:
        assert stream.read(100) == b'{"a":1}\n'
        assert not stream.wait(0.05)
        assert not stream.wait(0.0)
        server.release.set()
        assert stream.wait(10)
        assert stream.read(3) + stream.read(100) == b'{"a":2}\n'
        assert stream.read(100) == b""


@pytest.mark.parametrize("url", ["s3://bucket/x", "gs://b/x", "ftp://host/x", "file:///etc/hostname"])
def test_other_schemes_are_a_usage_error(url: str) -> None:
    for arguments in (["read", url], ["lookup", "--on", "a", "--from", url]):
        done = run_etl(*arguments)
        assert done.returncode == 2
        assert b"known: http, https" in done.stderr


@pytest.mark.parametrize(
    "url", ["http://", "http:///x", "http://host:port/", "http://host:0/", "http://ho st/", "http://[::1/"]
)
def test_malformed_urls(url: str) -> None:
    with pytest.raises(UsageError, match="malformed"):
        open_input(url)


def test_a_url_is_no_glob_and_in_no_directory(tmp_path: Path) -> None:
    assert expand(("http://host/*.csv?a=[1]",), str(tmp_path)) == ["http://host/*.csv?a=[1]"]
    (tmp_path / "http:").mkdir()
    (tmp_path / "http:" / "x").touch()
    assert expand(("./http://x",), str(tmp_path)) == [f"{tmp_path}/./http://x"]


def test_masked_leaves_other_paths_as_they_are() -> None:
    assert masked("dir/me@host?token=1") == "dir/me@host?token=1"
    assert masked("https://a:b@c@host/p@q?X-Amz-Signature=1&n=2") == "https://***@host/p@q?X-Amz-Signature=***&n=2"


def test_schemas_and_recipes_are_never_fetched(server: Server) -> None:
    for arguments in (["validate", "--schema", f"{server.url}/s.json"], ["run", f"{server.url}/r.yaml"]):
        assert run_etl(*arguments, env=environment()).returncode != 0
    assert server.requests == []


def test_a_url_is_no_output() -> None:
    done = run_etl("read", "-", "-o", "https://user:word@host/out", stdin=b"{}\n")
    assert (
        done.returncode == 2 and b"cannot write to https://***@host/out" in done.stderr and b"word" not in done.stderr
    )
