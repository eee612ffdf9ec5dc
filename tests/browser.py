"""Debian's chromium without a window: pages as a browser sees them."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--no-pdf-header-footer",
)  # fmt: skip
DARK, LIGHT = "--blink-settings=preferredColorScheme=0", "--blink-settings=preferredColorScheme=1"


def present() -> bool:
    return shutil.which("chromium") is not None


def chromium(page: Path, *flags: str) -> str:
    """What it prints for a page: with `--dump-dom` the document when its scripts are done."""
    with tempfile.TemporaryDirectory(prefix="etl-chromium-", ignore_cleanup_errors=True) as profile:
        done = subprocess.run(
            ["chromium", *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=100,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()
