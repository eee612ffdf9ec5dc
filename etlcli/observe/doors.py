"""The doors through which Prometheus gets at the series of a run: a Pushgateway, a text file, an address to be scraped.

What goes wrong at one fails no run: it is said once, in the log, and again when it has healed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING, Any

from etlcli.errors import CannotCreateError, EtlError
from etlcli.observe.periodic import Periodic
from etlcli.observe.series import LAST_SUCCESS
from etlcli.observe.status import SUCCEEDED, Status

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

Log = Callable[..., None]
_PATIENCE = 1.0
_LEAST = 0.2
_LARGEST = 16 << 20
"""Bytes of a text file that is looked at for what an earlier run has left."""


class Pushing:
    """Pushes to a Pushgateway, grouped by the job, which is the recipe. While the run lasts, and when it fails, series are
    added to the group (POST), so that the moment of the last success stays; at success they replace it (PUT)."""

    def __init__(self, url: str, every: float, timeout: float, series: CollectorRegistry, job: str, log: Log) -> None:
        self._url, self._user, self._password = _credentials(url)
        self._every = every
        self._timeout = timeout
        self._series = series
        self._job = job
        self._log = log
        self._failing = False
        self._periodic: Periodic | None = None

    def start(self) -> None:
        self._periodic = Periodic(self._every, lambda: self._push("POST", self._timeout))

    def close(self, last: Status) -> None:
        """A push that is going on and the last one have the time of one together."""
        end = monotonic() + self._timeout
        if self._periodic and not self._periodic.stop(self._timeout):
            self._say("the gateway does not answer")
            return
        left = max(_LEAST, end - monotonic())
        method = "PUT" if last.state == SUCCEEDED else "POST"
        final = Thread(target=self._push, args=(method, left), daemon=True)
        final.start()
        final.join(left)
        if final.is_alive():
            self._say("the gateway does not answer")

    def _push(self, method: str, timeout: float) -> None:
        from prometheus_client import push_to_gateway, pushadd_to_gateway

        push = push_to_gateway if method == "PUT" else pushadd_to_gateway
        try:
            push(self._url, self._job, self._series, timeout=timeout, handler=self._request)
        except Exception as error:  # urllib's, http.client's and the socket's
            self._say(str(error) or type(error).__name__)
        else:
            if self._failing:
                self._failing = False
                self._log("info", "push_works_again", url=self._url)

    def _request(
        self, url: str, method: str, timeout: float | None, headers: list[tuple[str, str]], data: bytes
    ) -> Callable[[], None]:
        """Not the library's: that follows a redirect with the password, and makes a GET without the series of a POST."""
        from base64 import b64encode
        from urllib import request as web

        class Stays(web.HTTPRedirectHandler):
            def redirect_request(self, *_: Any) -> None:
                """So that it is an error, as all that is not 2xx."""

        request = web.Request(url, data, dict(headers), method=method)
        if self._user is not None:
            account = b64encode(f"{self._user}:{self._password}".encode()).decode()
            request.add_header("Authorization", f"Basic {account}")

        def send() -> None:
            web.build_opener(Stays).open(request, timeout=timeout).close()

        return send

    def _say(self, reason: str) -> None:
        if not self._failing:
            self._failing = True
            self._log("warning", "push_failed", url=self._url, reason=reason, hint="the run goes on without it")


class TextFile:
    """Keeps a file for node_exporter's textfile collector, replaced as a whole (by rename)."""

    def __init__(self, path: str, every: float, series: CollectorRegistry, log: Log) -> None:
        self._path = path
        self._every = every
        self._series = series
        self._log = log
        self._failing = False
        self._periodic: Periodic | None = None
        self._success = _last_success(path)

    def start(self) -> None:
        self._periodic = Periodic(self._every, self._replace)

    def close(self, last: Status) -> None:
        if self._periodic:
            self._periodic.stop(_PATIENCE)
        if last.state == SUCCEEDED:
            self._success = b""
        self._replace()

    def _replace(self) -> None:
        from prometheus_client import generate_latest

        from etlcli.io.files import AtomicFile

        try:
            if os.path.exists(self._path) and not os.path.isfile(self._path):
                raise CannotCreateError(f"{self._path} is not a plain file", where=self._path)
            file = AtomicFile(self._path)
            try:
                file.write(generate_latest(self._series) + self._success)
                file.commit()
            finally:
                file.abort()
            self._failing = False
        except EtlError as error:
            if not self._failing:
                self._failing = True
                self._log("warning", "textfile_failed", path=self._path, reason=error.message)


class Listening:
    """Answers whoever scrapes, from the beginning until the process ends."""

    def __init__(self, address: str, series: CollectorRegistry, log: Log) -> None:
        from prometheus_client import start_http_server

        host, port = host_and_port(address)
        try:
            server, _ = start_http_server(port, host, series)
        except OSError as error:
            log("warning", "listen_failed", address=address, reason=error.strerror or str(error))
        else:
            bound, port = str(server.server_address[0]), server.server_address[1]
            log("info", "listening", address=f"[{bound}]:{port}" if ":" in bound else f"{bound}:{port}")

    def start(self) -> None:
        """It has begun."""

    def close(self, last: Status) -> None:
        """Stopping the server would take up to half a second."""


Door = Pushing | TextFile | Listening


def host_and_port(text: str) -> tuple[str, int]:
    """HOST:PORT; brackets for an IPv6 host. Raises ValueError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"expected HOST:PORT, for example 127.0.0.1:9464, not {text!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def check_server(url: str) -> None:
    """Raises ValueError, which quotes nothing of it, for what is no URL of a server."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and url.isprintable()
    except ValueError:
        good = False
    if not good or " " in url:
        raise ValueError(
            "expected a URL, for example http://HOST:PORT; what is special in a password is written as %XX"
        )


def _credentials(url: str) -> tuple[str, str | None, str | None]:
    """The URL without them, user and password."""
    from urllib.parse import unquote, urlsplit, urlunsplit

    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    bare = urlunsplit(parts._replace(netloc=host)).rstrip("/")
    if parts.username is None:
        return bare, None, None
    return bare, unquote(parts.username), unquote(parts.password or "")


def _last_success(path: str) -> bytes:
    """What a text file says of the last good run, as lines: the series must stay while later ones fail."""
    if not os.path.isfile(path) or os.path.getsize(path) > _LARGEST:
        return b""
    with suppress(OSError):
        with open(path, "rb") as file:
            lines = re.findall(rb"^(?:# (?:HELP|TYPE) )?%b[ {].*\n" % LAST_SUCCESS.encode(), file.read(), re.MULTILINE)
        return b"".join(lines)
    return b""
