"""What must be shown nowhere: credentials in URLs, and values that were given as secrets.

Who takes a secret in registers it; whatever is written for people to read (logs, errors, plans, counts) is `hidden`. A text
that has to tell one input from another, such as an origin, is `masked` instead.
"""

from __future__ import annotations

import re

SHORTEST = 4
"""Characters of a secret; a shorter one would take half of every text with it."""
MASK = "***"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_CREDENTIALS = re.compile(r"(?<=://)[^/?#]*@")
_QUERY = re.compile(r"([?&][^=&#]*(?:token|secret|sig|key|passw|credential|auth)[^=&#]*=)[^&#]*", re.IGNORECASE)
_SECRET_NAME = re.compile("PASS|SECRET|TOKEN|KEY|CREDENTIAL", re.IGNORECASE)
# Up to where the next URL of a list begins.
_URL = re.compile(r"""(?<=://)(?:(?!,[A-Za-z][A-Za-z0-9+.-]{0,30}://)[^\s"'<>])+""")
_HOST = re.compile(r"[^/?#]*")
_HOST_AND_PORT = re.compile(r"[^:@]*:\d*(?:/[^@?]*)?\?")
_SUB_DELIMITERS = "!$&'()*+,;=:@/"
"""What may stand in a part of a path as it is (RFC 3986)."""
_secrets: set[str] = set()


def names_secret(name: str) -> bool:
    """Whether a variable's name says that its value is a secret."""
    return _SECRET_NAME.search(name) is not None


def register(secret: str) -> None:
    """From now on the text is `hidden`, in the spellings that messages and programs use, and so is each line of it."""
    import json  # which spells what is not ASCII as escapes, as many programs do
    from urllib.parse import quote, quote_plus

    import msgspec

    shown = secret.encode(errors="backslashreplace").decode()
    spelled = {shown, msgspec.json.encode(shown).decode()[1:-1]}
    for text in (secret, *secret.splitlines()):
        spelled |= {text, text.strip(), repr(text)[1:-1], json.dumps(text)[1:-1]}
        for encode in (quote, quote_plus):
            spelled |= {encode(text, safe=safe, errors="backslashreplace") for safe in ("", "/", _SUB_DELIMITERS)}
    _secrets.update(each for each in spelled if len(each.strip()) >= SHORTEST)


def masked(path: str) -> str:
    """A URL without its credentials, nor what a query's names tell to be one; any other path as it is."""
    if not _SCHEME.match(path):
        return path
    return _QUERY.sub(rf"\1{MASK}", _CREDENTIALS.sub(f"{MASK}@", without_secrets(path)))


def hidden(text: str) -> str:
    """A text without registered secrets, and without the credentials and queries of all URLs in it."""
    text = without_secrets(text)
    return _URL.sub(_bare, text) if "://" in text else text


def without_secrets(text: str) -> str:
    """A text without registered secrets."""
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


def _bare(match: re.Match[str]) -> str:
    """What may be seen of a URL, from its scheme on."""
    url = match[0]
    host = _HOST.match(url)
    assert host is not None
    if "@" in host[0]:
        url = f"{MASK}@" + url[host[0].rindex("@") + 1 :]
    elif ":" in host[0] and "@" in url and not _HOST_AND_PORT.match(url):  # a password with / ? or #
        url = f"{MASK}@" + url.partition("@")[2]
    place, mark, query = url.partition("?")
    end = query[len(query.rstrip(":;,.)")) :]
    return f"{place}?{MASK}{end}" if mark and query != end else url
