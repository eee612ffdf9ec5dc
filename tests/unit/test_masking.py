"""P6: what must be shown nowhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etlcli.io import masking
from etlcli.io.masking import hidden, masked, names_secret, register, without_secrets


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    known: set[str] = set()
    monkeypatch.setattr(masking, "_secrets", known)
    return known


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot open https://me:word@host/x: 404", "cannot open https://***@host/x: 404"),
        ("cannot open https://host/x?a=1&token=word: 404", "cannot open https://host/x?***: 404"),
        ("(https://host/x?word).", "(https://host/x?***)."),
        ("postgresql://me:wo/rd@host/db", "postgresql://***@host/db"),
        ("postgresql://me:12/word@host/db", "postgresql://***@host/db"),
        ("postgresql://me:w?rd@host/db", "postgresql://***@host/db"),
        ("postgresql+psycopg://me:w#rd@host/db?sslpassword=word", "postgresql+psycopg://***@host/db?***"),
        ("https://a:word@h/x?word,http://b:word@i/y?word", "https://***@h/x?***,http://***@i/y?***"),
        ('{"path":"https://me:word@host/x?word","n":1}', '{"path":"https://***@host/x?***","n":1}'),
        ("https://me@host/", "https://***@host/"),
        ("://me:word@host", "://***@host"),
        # Nothing to hide.
        ("https://host:8080/x", "https://host:8080/x"),
        ("why? me@host: see dir/a?b", "why? me@host: see dir/a?b"),
        ("is it https://host/x?", "is it https://host/x?"),
        ("https://host:80/x?mail=me@here", "https://host:80/x?***"),
    ],
)
def test_urls_in_texts(text: str, shown: str) -> None:
    assert hidden(text) == shown
    assert hidden(shown) == shown


@given(st.text(alphabet="ab:/?#@,. \"'\\&=*[]") | st.text())
def test_hiding_twice_hides_no_more(text: str) -> None:
    assert hidden(hidden("https://" + text)) == hidden("https://" + text)


def test_a_hostile_text_takes_no_longer_than_its_length() -> None:
    # Would not end if any of it were quadratic.
    for part in ("a://b:c", "://", "a://,", "://?", ":::::::", "://@", "://a:@?"):
        hidden(part * 300_000)


def test_a_secret_is_masked_in_the_spellings_of_messages() -> None:
    secret = "pa\"ss\\wo\nrd' ü/1"
    register(secret)
    for spelled in (secret, repr(secret), "pa%22ss%5Cwo%0Ard%27%20%C3%BC%2F1", "pa\\\"ss\\\\wo\\nrd' ü/1"):
        assert "ss" not in hidden(f"before {spelled} after") and "ss" not in without_secrets(spelled)
    assert hidden('before pa"ss\\wo after') == "before *** after"  # a line of it


@pytest.mark.parametrize(
    ("secret", "spelled"),
    [
        ("abc/def+ghi==", "abc/def%2Bghi%3D%3D"),
        ("tök€nö", '"t\\u00f6k\\u20acn\\u00f6"'),
        ("pass word&x", "pass+word%26x"),
        ("it's a pass", "it%27s+a+pass"),
        ("it's a pass", "it's%20a%20pass"),
    ],
)
def test_a_secret_is_masked_as_programs_spell_it(secret: str, spelled: str) -> None:
    register(secret)
    assert hidden(f"a={spelled}") in ("a=***", 'a="***"')


def test_the_longest_secret_goes_first() -> None:
    register("word")
    register("wordlong")
    assert hidden("a wordlong word") == "a *** ***"


def test_short_secrets_would_mask_everything() -> None:
    register("abc")
    register("   ")
    register("")
    assert hidden("abc    abc") == "abc    abc"


def test_a_secret_that_is_no_text() -> None:
    register("word\udcff")
    assert hidden("a word\udcff b") == "a *** b" == hidden("a word\\udcff b")


def test_an_origin_tells_inputs_apart() -> None:
    assert masked("https://me:word@host/x?page=2&api_key=word") == "https://***@host/x?page=2&api_key=***"
    register("wordy")
    assert masked("https://host/wordy/x") == "https://host/***/x"
    assert masked("dir/wordy") == "dir/wordy"


@pytest.mark.parametrize("name", ["DB_PASSWORD", "passwd", "API_TOKEN", "AWS_SECRET_ACCESS_KEY", "Key", "CREDENTIALS"])
def test_names_of_secrets(name: str) -> None:
    assert names_secret(name)
    assert not names_secret("HOST")
