"""A run's lineage: what the events say, where they go, and what it costs when nobody takes them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_tracing import Warnings, collector, status

from etlcli.errors import UsageError
from etlcli.observe.lineage import Dataset, Lineage, dataset_of
from etlcli.observe.status import FAILED, RUNNING, Status

INPUTS = [Dataset("read", "file", "/data/in.ndjson")]
OUTPUTS = [Dataset("write", "file", "/data/out.ndjson")]


def observed(last: Status, **where: Any) -> Warnings:
    warnings: Warnings = []
    given = {"inputs": INPUTS, "outputs": OUTPUTS, **where}
    lineage = Lineage(lambda level, event, **fields: warnings.append((event, fields)), **given)
    lineage.begin(lambda: status(state=RUNNING, exit_code=None))
    lineage.end(last)
    return warnings


def test_start_and_complete_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "lineage.ndjson"
    for _ in range(2):
        assert observed(status(), file=str(path), namespace="night") == []
    start, complete, *again = map(json.loads, path.read_text().splitlines())
    assert len(again) == 2, "events are appended"
    assert (start["eventType"], complete["eventType"]) == ("START", "COMPLETE")
    assert start["run"]["runId"] == complete["run"]["runId"]
    assert (complete["job"]["namespace"], complete["job"]["name"]) == ("night", "r")
    assert (start["eventTime"], complete["eventTime"]) == (
        "1970-01-01T00:16:40+00:00",
        "1970-01-01T00:16:42.500000+00:00",
    )
    (output,) = complete["outputs"]
    assert (output["namespace"], output["name"]) == ("file", "/data/out.ndjson")
    statistics = output["outputFacets"]["outputStatistics"]
    assert (statistics["rowCount"], statistics["size"]) == (1, 10)
    assert complete["inputs"][0]["inputFacets"]["inputStatistics"]["rowCount"] == 5
    assert [each["name"] for each in start["inputs"] + start["outputs"]] == ["/data/in.ndjson", "/data/out.ndjson"]
    assert "outputStatistics" not in json.dumps(start)
    assert complete["producer"] == "urn:x-etlcli:0.1.0" == statistics["_producer"]


def test_a_failed_run_says_why_and_counts_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lineage.ndjson"
    observed(status(state=FAILED, error="in.ndjson:3: schema", exit_code=1), file=str(path))
    fail = json.loads(path.read_text().splitlines()[1])
    assert fail["eventType"] == "FAIL"
    assert fail["run"]["facets"]["errorMessage"]["message"] == "in.ndjson:3: schema"
    assert "outputStatistics" not in json.dumps(fail)


def test_what_nobody_has_counted_is_not_said(tmp_path: Path) -> None:
    path = tmp_path / "lineage.ndjson"
    observed(status(), file=str(path), inputs=[*INPUTS, Dataset("read", "file", "/data/more.ndjson")])
    complete = json.loads(path.read_text().splitlines()[1])
    assert len(complete["inputs"]) == 2 and "inputStatistics" not in json.dumps(complete)


@pytest.mark.parametrize(
    ("path", "endpoint"), [("", "/api/v1/lineage"), ("/", "/api/v1/lineage"), ("/own/in?a=1", "/own/in?a=1")]
)
def test_events_go_to_a_server_in_order(path: str, endpoint: str) -> None:
    with collector(201) as (url, bodies):
        assert observed(status(), url=url + path) == []
    assert [place for place, _ in bodies] == [endpoint] * 2
    assert [json.loads(body)["eventType"] for _, body in bodies] == ["START", "COMPLETE"]


def test_a_server_that_refuses_is_a_warning_without_credentials() -> None:
    with collector(403) as (url, _):
        warnings = observed(status(), url=url.replace("//", "//u:geheim@") + "/in?token=geheim")
    assert [event for event, _ in warnings] == ["not_sent"]
    assert warnings[0][1]["reason"] == "the server says 403"
    assert "geheim" not in repr(warnings) and "***@" in warnings[0][1]["to"]


def test_a_server_that_names_another_address_is_a_warning() -> None:
    """The library would go there with a GET, and without the event."""
    with collector(200) as (other, bodies), collector(302, other) as (url, _):
        ((_, fields),) = observed(status(), url=url)
    assert bodies == []
    assert fields["reason"] == "the server says 302"


@pytest.mark.parametrize(
    ("account", "expected"), [("u:p%40@", b"Authorization: Basic dTpwQA=="), ("", b"Authorization: Bearer k")]
)
def test_credentials_and_keys_are_sent(account: str, expected: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "k")
    with socket.create_server(("127.0.0.1", 0)) as server:
        observed(status(), url=f"http://{account}127.0.0.1:{server.getsockname()[1]}", patience=0.3)
        connection, _ = server.accept()
        with connection:
            connection.settimeout(10)
            assert expected in connection.recv(65536)


def test_nothing_but_the_warning_is_on_standard_error() -> None:
    code = (
        "from test_lineage import *\n"
        "print(observed(status(), url='http://u:geheim@127.0.0.1:9/in?token=geheim', patience=60))\n"
    )  # fmt: skip
    env = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, timeout=90)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"not_sent" in done.stdout and b"no connection" in done.stdout and b"geheim" not in done.stdout


def test_a_server_that_does_not_answer_costs_a_bounded_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # connections wait in its queue for ever
        ((_, fields),) = observed(status(), url=f"http://127.0.0.1:{server.getsockname()[1]}", patience=0.3)
    assert fields["reason"] == "no answer in 0.3 s"


def test_a_file_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    ((event, fields),) = observed(status(), file=str(tmp_path / "none" / "lineage.ndjson"))
    assert event == "not_sent" and fields["reason"] == "No such file or directory"


def test_a_url_that_is_none() -> None:
    for url in ("ftp://u:geheim@x/", "no url", "http://"):
        with pytest.raises(UsageError) as error:
            observed(status(), url=url)
        assert "geheim" not in error.value.message


def test_datasets_have_the_names_that_others_find_them_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert dataset_of("read", "in.ndjson") == Dataset("read", "file", f"{tmp_path}/in.ndjson")
    assert dataset_of("read", "https://u:p@h:8443/x/y.csv?token=z") == Dataset("read", "https://h:8443", "/x/y.csv")
    assert dataset_of("write", "-") is None
    assert dataset_of("read", "\udcff") == Dataset("read", "file", f"{tmp_path}/\\xff")
