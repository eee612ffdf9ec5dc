"""http and https URLs as byte streams.

Opening is tried again while that may help: a connection refused or reset, a name server that is busy, 408, 429 and 5xx;
`Retry-After` is heeded. This is no record's failure, so no policy has a say in it. A body is never asked for again once it
has begun, as it may have changed: one that is cut short, by its Content-Length or its last chunk, ends the run. (A body
with neither ends with the connection, whole or not; only compression can tell then.)

Redirects go to http and https, never from https to http. Credentials go to the server they were given for, by any name of
the same scheme, host and port, and nowhere else. Proxies are those of the environment, as `urllib` has them.
"""

from __future__ import annotations

import time
from base64 import b64encode
from concurrent.futures import Future, wait
from email.message import Message
from http.client import HTTPException, HTTPResponse, responses
from select import POLLIN, poll
from socket import EAI_AGAIN, gaierror
from threading import Thread
from typing import IO
from urllib import request as web
from urllib.error import HTTPError
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from etlcli import __version__
from etlcli.errors import DataError, EtlError, InputMissingError, InputOutputError, ServiceUnreachableError, UsageError
from etlcli.io.masking import masked

SCHEMES = ("http", "https")
TIMEOUT = 30.0
"""Seconds that a server may take to accept a connection, and to send something."""
PAUSES = (0.5, 1.0, 2.0)
"""Seconds between the tries to open."""
LONGEST_PAUSE = 60.0
"""Seconds that a server may ask us to wait."""
_BLOCK = 1 << 18
_SAFE = "%/:=&?~+!$,;'@()*[]"
_MAY_HEAL = {408, 429}
_ENCODINGS = {"", "identity", "gzip", "x-gzip", "zstd"}
"""What a body's encoding may be: compression is recognised by content."""


class RemoteStream:
    """A response's body. `read` returns what is there rather than wait for more."""

    def __init__(self, url: str, response: HTTPResponse) -> None:
        self.path = masked(url)
        self.name = unquote(urlsplit(url).path)
        self.media_type = response.headers.get_content_type() if "content-type" in response.headers else ""
        self._response = response
        self._missing = response.length
        self._rest = b""
        self._ahead: Future[bytes] | None = None
        self._poll = poll()
        if not response.isclosed():
            self._poll.register(response.fileno(), POLLIN)

    def read(self, size: int) -> bytes:
        """At most `size` bytes; b"" at the end. Raises InputOutputError when the connection fails, or ends too early."""
        if not self._rest:
            ahead, self._ahead = self._ahead, None
            self._rest = ahead.result() if ahead else self._received(size)
        block, self._rest = self._rest[:size], self._rest[size:]
        return block

    def wait(self, seconds: float) -> bool:
        """Whether there is something to read, or the end, within that time. A socket cannot tell, as TLS and chunks have
        bytes of their own; so a thread reads."""
        if self._rest:
            return True
        if self._ahead is None:
            self._ahead = Future()
            Thread(target=self._look_ahead, args=(self._ahead,), daemon=True).start()
        return bool(wait([self._ahead], max(seconds, 0.0)).done)

    def close(self) -> None:
        if self._ahead is None or self._ahead.done():  # else the thread has it, and would have to be waited for
            self._response.close()

    def _look_ahead(self, ahead: Future[bytes]) -> None:
        try:
            ahead.set_result(self._received(_BLOCK))
        except Exception as error:
            ahead.set_exception(error)

    def _received(self, size: int) -> bytes:
        try:
            blocks = [self._response.read1(size)]
            total = len(blocks[0])
            while blocks[-1] and total < size and not self._response.isclosed() and self._poll.poll(0):
                blocks.append(self._response.read1(size - total))
                total += len(blocks[-1])
        except (HTTPException, OSError) as error:
            raise self._cut_short(_reason(error)) from error
        if self._missing is not None:
            self._missing -= total
            if self._missing and not blocks[-1]:
                raise self._cut_short(f"{self._missing} bytes are missing")
        return b"".join(blocks)

    def _cut_short(self, why: str) -> InputOutputError:
        return InputOutputError(
            f"{self.path} was cut short: {why}", where=self.path, hint="run it again; nothing was published"
        )


class _Redirects(web.HTTPRedirectHandler):
    def redirect_request(
        self, req: web.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> web.Request:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme not in SCHEMES or (old.scheme == "https" and new.scheme == "http"):
            raise HTTPError(req.full_url, code, msg, headers, fp)
        request = _request(newurl)
        if (old.scheme, old.netloc) == (new.scheme, new.netloc):
            request.unredirected_hdrs.update(
                (name, value) for name, value in req.unredirected_hdrs.items() if name == "Authorization"
            )
        return request


def check_url(url: str) -> None:
    """Raises UsageError for what is no URL of http or https. It asks no server."""
    scheme = url.partition(":")[0]
    if scheme.lower() not in SCHEMES:
        raise UsageError(
            f"cannot open {masked(url)}: {scheme} is no scheme that etl knows",
            hint=f"known: {', '.join(SCHEMES)}; of a local file give the path, anything else can be piped in",
        )
    try:
        parts = urlsplit(url)
        good = bool(parts.hostname) and (parts.port is None or parts.port > 0) and url.isprintable() and " " not in url
    except ValueError:
        good = False
    if not good:
        # Its parts cannot be told apart, so no more of it is shown than what cannot be a secret.
        raise UsageError(
            f"a URL of {scheme} is malformed",
            hint="a URL is https://HOST[:PORT]/PATH; write %2F for / in a password",
        )


def open_url(url: str) -> RemoteStream:
    """Raises InputMissingError for what the server does not give, ServiceUnreachableError when there is none or it
    cannot."""
    check_url(url)
    for pause in (*PAUSES, None):
        asked = 0.0
        try:
            response = _opener().open(_request(url), timeout=TIMEOUT)
        except HTTPError as error:
            error.close()
            failure, heals, asked = _refused(url, error.code), _heals(error.code), _retry_after(error.headers)
        except (HTTPException, OSError) as error:
            cause = getattr(error, "reason", error)
            heals = isinstance(cause, ConnectionError) or (isinstance(cause, gaierror) and cause.errno == EAI_AGAIN)
            failure = _unreachable(url, _reason(cause))
        else:
            return _accepted(url, response)
        if not heals or pause is None or asked > LONGEST_PAUSE:
            break
        time.sleep(max(pause, asked))
    raise failure


def _opener() -> web.OpenerDirector:
    """For http and https only: the usual one also opens files and ftp."""
    opener = web.OpenerDirector()
    for handler in (web.ProxyHandler, web.HTTPHandler, web.HTTPSHandler, web.HTTPDefaultErrorHandler,
                    _Redirects, web.HTTPErrorProcessor):  # fmt: skip
        opener.add_handler(handler())
    return opener


def _request(url: str) -> web.Request:
    parts = urlsplit(url)
    credentials, given, host = parts.netloc.rpartition("@")
    path, query = quote(parts.path, safe=_SAFE), quote(parts.query, safe=_SAFE)
    request = web.Request(
        urlunsplit((parts.scheme, host, path, query, "")),
        headers={"User-Agent": f"etl/{__version__}", "Accept-Encoding": "identity"},
    )
    if given:
        user, _, password = credentials.partition(":")
        token = b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


def _accepted(url: str, response: HTTPResponse) -> RemoteStream:
    encoding = response.headers.get("Content-Encoding", "").lower()
    if response.status == 200 and encoding in _ENCODINGS:
        return RemoteStream(url, response)
    response.close()
    if response.status != 200:
        raise _refused(url, response.status)
    raise DataError(f"{masked(url)} is sent with an encoding that was not asked for", where=masked(url))


def _heals(status: int) -> bool:
    return status in _MAY_HEAL or status >= 500


def _refused(url: str, status: int) -> EtlError:
    answer = f"{status} {responses.get(status, '')}".strip()
    if _heals(status):
        return _unreachable(url, f"the server answers {answer}")
    hints = {
        401: "credentials go into the URL: https://USER:PASSWORD@HOST/PATH",
        403: "the server does not let you read it",
        404: "see whether the URL is right",
    }
    hint = hints.get(status, "")
    if 300 <= status < 400:
        hint = "redirects are followed to http and https, but not from https to http, and not in circles"
    return InputMissingError(f"cannot open {masked(url)}: the server answers {answer}", where=masked(url), hint=hint)


def _unreachable(url: str, why: str) -> ServiceUnreachableError:
    return ServiceUnreachableError(
        f"cannot open {masked(url)}: {why}", where=masked(url), hint="try again later; nothing was published"
    )


def _reason(error: object) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _retry_after(headers: Message) -> float:
    """Seconds; 0 where it says nothing that can be understood."""
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0
