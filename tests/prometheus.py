"""Real Prometheus programs for the tests, on loopback: a Pushgateway, and a server that scrapes."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

USER, PASSWORD = "etl", "pass/word"
_HASH = "$2b$04$T5B4qEiWluaLkLceF8e8P.VTiFjnYxJLKW17QxlBTEz316qtKdpX2"
"""bcrypt, of PASSWORD."""


def missing() -> list[str]:
    return [name for name in ("prometheus-pushgateway", "prometheus", "promtool") if not shutil.which(name)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        text: str = answer.read().decode()
        return text


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """What the condition is, as soon as it is something."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "nothing came of it"
        time.sleep(0.02)
    return value


def answers(url: str) -> bool:
    try:
        fetch(url)
    except OSError:
        return False
    return True


@contextmanager
def _serving(command: list[str], url: str) -> Iterator[str]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: answers(f"{url}/-/ready"))
        yield url
    finally:
        process.kill()
        process.wait()


@contextmanager
def gateway(directory: Path, *, password: bool = False) -> Iterator[str]:
    """The URL of a Pushgateway, without credentials."""
    port = free_port()
    options = [f"--web.listen-address=127.0.0.1:{port}"]
    url = f"http://127.0.0.1:{port}"
    if not password:
        with _serving(["prometheus-pushgateway", *options], url):
            yield url
        return
    config = directory / "web.yml"
    config.write_text(f"basic_auth_users: {{{USER}: '{_HASH}'}}\n")
    process = subprocess.Popen(
        ["prometheus-pushgateway", *options, f"--web.config.file={config}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(lambda: _listens(port))
        yield url
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True


@contextmanager
def server(directory: Path, target: str) -> Iterator[Callable[[str], list[Any]]]:
    """A Prometheus that scrapes `target` five times a second; what is yielded asks it."""
    port = free_port()
    config = directory / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 200ms, scrape_timeout: 200ms}\n"
        f"scrape_configs: [{{job_name: etl, static_configs: [{{targets: ['{target}']}}]}}]\n"
    )
    command = [
        "prometheus", f"--config.file={config}", f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with _serving(command, f"http://127.0.0.1:{port}") as url:

        def ask(query: str) -> list[Any]:
            found: list[Any] = json.loads(fetch(f"{url}/api/v1/query?query={quote(query)}"))["data"]["result"]
            return found

        yield ask
