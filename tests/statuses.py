"""Statuses of runs that never were: what an observer may be given, from the plain to the hostile."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import sin

import msgspec

from etlcli.core.effort import BUCKETS
from etlcli.observe.status import CheckpointMark, Example, Status, StepStatus

START = 1_790_000_000.0
SCRIPT = '<script>document.title="owned"</script>'
HOSTILE = f"{SCRIPT}<img src=x onerror=\"document.title='owned'\">\x1b[31m\x00\u202e'\"&amp;</style></svg></pre>"


def step(id: str, uses: str, kind: str, above: str | None, received: int, seconds: float = 0.5, **more) -> StepStatus:
    """One that balances: what is not said to have gone elsewhere goes on."""
    gone = sum(sum(more.get(name, {}).values()) for name in ("discarded", "rejected", "absorbed"))
    sent = more.pop("sent", received + more.get("made", 0) - gone)
    spread = [0, 0, 3, 9, received // 4000, received // 2500, 12, 4, 1, 0, 0, 0, 0, 0]
    buckets = more.pop("buckets", spread if received else [0] * (len(BUCKETS) + 1))
    return StepStatus(
        id=id, uses=uses, kind=kind, above=above, received=received, sent=sent, seconds=seconds, buckets=buckets, **more
    )


def status(steps: list[StepStatus], seconds: float = 24.6, **more) -> Status:
    received = steps[0].received - steps[0].discarded.get("blank", 0) if steps else 0
    known = {
        "run": "20260921-141640-7f3a", "recipe": "flights", "path": "recipes/flights.yaml", "digest": "9f2c61d07be4a518",
        "pid": 4711, "version": "0.1.0", "state": "succeeded", "started": START, "now": START + seconds, "exit_code": 0,
        "read": received * 313, "size": received * 313, "received": received, "queue": 64 << 20, "workers": 2,
    }  # fmt: skip
    return Status(**{**known, **more}, steps=steps)


def linear() -> Status:
    steps = [
        step("read", "read", "source", None, 336_788, 3.42, discarded={"blank": 12}, blocked={"check": 7.9, "input": 0.31}),
        step("check", "validate", "stage", "read", 336_776, 17.86, rejected={"schema": 8_255, "rule": 39},
             blocked={"input": 0.8}, healed={"fallback": 411}, retries=431),
        step("carrier-names", "lookup", "stage", "check", 328_482, 2.2, rejected={"lookup_failed": 3}, blocked={"command": 1.92},
             cache_hits=328_101, cache_misses=16),
        step("only-new", "dedupe-cache", "stage", "carrier-names", 328_479, 4.05, discarded={"duplicate": 12_204},
             blocked={"input": 9.4, "workers": 1.1}),
        step("order", "sort", "stage", "only-new", 316_275, 6.31, blocked={"input": 11.9}),
        step("write", "write", "sink", "order", 316_275, 1.16, blocked={"output": 2.3, "input": 17.2}, bytes_out=99_310_350),
    ]  # fmt: skip
    rejects = [
        Example("check", "schema", '"NA" is not of type "integer" at /dep_time (and 1 more)', "in/2013-01.ndjson", 288 + 31 * n,
                f'{{"year":2013,"month":1,"day":1,"dep_time":"NA","sched_dep_time":{1630 + n},"dep_delay":"NA","arr_time":"NA"'
                ',"carrier":"MQ","flight":4569,"tailnum":"N542MQ","origin":"EWR","dest":"ORD"')
        for n in range(3)
    ] + [
        Example("check", "rule", "not true: distance > 0", "in/2013-02.ndjson", 17, '{"year":2013,"distance":0,"carrier":"US"}'),
        Example("carrier-names", "lookup_failed", "the command gave no answer for \"ZZ\"", "in/2013-03.ndjson", 9_904, '{"carrier":"ZZ"}'),
    ]  # fmt: skip
    marks = [CheckpointMark(START + 5 * n, 68_000 * n, 0.02 + 0.011 * n) for n in range(1, 5)]
    return status(steps, rejects=rejects, checkpoints=marks, checkpoint_every=5.0)


def fork(branches: int = 3) -> Status:
    steps = [
        step("read", "read", "source", None, 336_776, 3.4, blocked={"check": 2.0}),
        step("check", "validate", "stage", "read", 336_776, 9.1, rejected={"schema": 8_255}),
        step("route", "route", "fork", "check", 328_521, 0.42, discarded={"no_route": 1_204}),
    ]
    left, names = 328_521 - 1_204, ["late", "far", "others", "west", "night", "rest"]
    for number in range(branches):
        taken = left if number == branches - 1 else left // 3
        left -= taken
        above = "route"
        if number == 0:
            steps.append(step("worst-first", "sort", "stage", "route", taken, 2.5, blocked={"input": 7.7}))
            above = "worst-first"
        refused = {"rejected": {"sink_refused": 14}} if number == 2 else {}
        uses = "sql" if number == 2 else "write"
        steps.append(step(names[number], uses, "sink", above, taken, 1.0 + number, bytes_out=taken * 280, **refused))
    rejects = [
        Example(
            "check", "schema", '"NA" is not of type "integer" at /dep_time', "flights.ndjson", 288, '{"dep_time":"NA"}'
        )
    ]
    return status(steps, 14.2, rejects=rejects)


def failed() -> Status:
    steps = [
        step("read", "read", "source", None, 51_204, 0.8, discarded={"abandoned": 4}),
        step(
            "check", "validate", "stage", "read", 51_200, 2.9, rejected={"bad_json": 1}, discarded={"abandoned": 2_047}
        ),
        step("write", "write", "sink", "check", 49_152, 0.3, discarded={"abandoned": 49_152}),
    ]
    error = (
        "in/2013-01.ndjson:51201 (step check): bad_json: expected `,` or `}` at byte 118\n"
        "nothing was published; to go on without such records use --on-error skip or quarantine"
    )
    rejects = [
        Example(
            "check",
            "bad_json",
            "expected `,` or `}` at byte 118",
            "in/2013-01.ndjson",
            51_201,
            '{"year":2013 "month":1}',
        )
    ]
    return status(steps, 3.1, state="failed", exit_code=1, error=error, size=105_000_000, rejects=rejects)


def interrupted() -> Status:
    last = linear()
    return msgspec.structs.replace(
        last, state="failed", exit_code=130, error="interrupted by SIGINT", resumed=True, generation=2
    )


def empty() -> Status:
    steps = [step("read", "read", "source", None, 0, 0.0), step("write", "write", "sink", "read", 0, 0.0)]
    return status(steps, 0.08, size=0, workers=1, digest=None)


def huge() -> Status:
    """A day and a half, a hundred billion records, many steps with long names."""
    left = 123_456_789_012
    steps = [
        step(
            "read-all-of-them",
            "read",
            "source",
            None,
            left,
            98_000.0,
            blocked={"check-03-of-many-steps-in-a-row": 31_000.0},
        )
    ]
    for number in range(1, 17):
        steps.append(
            step(f"check-{number:02}-of-many-steps-in-a-row", "validate", "stage", steps[-1].id, left, 5_000.0 * number,
                 rejected={"schema": 1_204_331_977, "missing_field": 88_000_111}, discarded={"no_longer_wanted": 5_000_000_003},
                 healed={"retry": 1_900_000_001}, retries=7_200_000_404, cache_hits=99_000_000_123, cache_misses=20_000_000_456,
                 blocked={"input": 4_000.0, "output": 3_100.0, "command": 2_000.0, "workers": 1_200.5})
        )  # fmt: skip
        left = steps[-1].sent
    steps.append(step("write", "write", "sink", steps[-1].id, left, 61_000.0, bytes_out=left * 290))
    marks = [CheckpointMark(START + 30 * number, 28_000_000 * number, 1.25) for number in range(1, 4_000)]
    return status(steps, 130_400.0, checkpoints=marks, checkpoint_every=30.0, workers=64)


def single() -> Status:
    return status([step("read", "read", "source", None, 9_906, 0.21)], 0.4, path=None, digest=None, recipe="read")


def hostile() -> Status:
    """Markup and control characters wherever a text can come from outside."""
    steps = [
        step(HOSTILE, "read", "source", None, 20, rejected={"bad_json": 3}),
        step("]]>" + "Ω漢" * 80, HOSTILE, "stage", HOSTILE, 17, 1.0, discarded={HOSTILE: 2}, blocked={HOSTILE: 1.0}),
        step(
            "w" * 300,
            "write",
            "sink",
            "]]>" + "Ω漢" * 80,
            15,
            absorbed={HOSTILE: 5, "b": 1},
            made=2,
            healed={HOSTILE: 1},
        ),
    ]
    rejects = [
        Example(HOSTILE, "bad_json", HOSTILE, HOSTILE, 1, HOSTILE),
        Example(HOSTILE, "bad_json", "\ud800", "caf\udce9", None, "\x00\x07\t\r\n\u2028\u200b" + "x" * 5000),
        Example(HOSTILE, "bad_json", "", None, None, ""),
    ]
    texts = dict.fromkeys(("run", "recipe", "path", "digest", "version", "error"), HOSTILE)
    return status(steps, 1.5, state="failed", exit_code=70, rejects=rejects, **texts)


CASES: dict[str, Callable[[], Status]] = {
    "linear": linear, "fork": fork, "many-branches": lambda: fork(6), "failed": failed, "interrupted": interrupted,
    "empty": empty, "huge": huge, "single": single, "hostile": hostile, "no-steps": lambda: status([], 0.01, state="failed", exit_code=78),
}  # fmt: skip


def growing(last: Status, samples: int) -> list[Status]:
    """The run on its way to `last`, as somebody would have seen it, evenly in time."""
    shares = [0.0]
    for number in range(1, samples + 1):
        shares.append(shares[-1] + 1 + 0.35 * sin(number / 3) + (0.5 if number % 7 < 3 else 0))
    seconds = last.now - last.started
    return [
        msgspec.structs.replace(
            last, now=last.started + seconds * number / samples, state="running", exit_code=None,
            received=round(last.received * share / shares[-1]), read=round(last.read * share / shares[-1]),
            queued=round(last.queue * min(0.98, abs(sin(number / 19)) * 1.1)),
            steps=[msgspec.structs.replace(each, sent=round(each.sent * share / shares[-1])) for each in last.steps],
        )
        for number, share in enumerate(shares[:-1])
    ]  # fmt: skip


def balanced(last: Status) -> bool:
    """Whether all steps account for their records."""
    return all(
        each.received + each.made
        == each.sent + sum(sum(counts.values()) for counts in (each.discarded, each.rejected, each.absorbed))
        for each in last.steps
    )


def ascending(values: list[int]) -> bool:
    return all(before <= after for before, after in pairwise(values))
