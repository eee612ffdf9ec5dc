"""`filter`: the records for which an expression is true. All of it is `prepare`."""

from __future__ import annotations

from typing import Any

from etlcli.core import params
from etlcli.core.batch import Batch
from etlcli.core.explain import judged
from etlcli.core.expressions import Expression, check_condition
from etlcli.core.fields import Path
from etlcli.core.stage import Context, Prepared, Stage, State


class Filter(Stage):
    help = """Keep the records for which an expression is true; they go on byte for byte.

Fields are named as they are (dep_delay, a.b.c, tags[0], field("odd name")), and the rest is spelled as in Python: == != <
<= > >= (also chained), in, not in, and, or, not, + - * / // %, x if condition else y, "text", numbers, true, false, null,
[lists].

A comparison with a field that is null or missing is unknown, and a record is kept only if the whole is true: neither x > 0
nor not x > 0 keeps a record without x. exists(x) and coalesce(x, 0) decide otherwise. Types are never mixed: a string where
a number is compared rejects the record (bad_type), and so does a whole that is neither true, false nor null.

Of strings: len lower upper strip split(s, ",") startswith endswith contains, and matches(s, r"^N\\d") with a regular
expression that may match anywhere. Of numbers: abs round(x, digits) min max; integers are exact, all else are doubles, /
gives a double, round goes to the even neighbour. Of any: int float str, and hash(a, b), 32 hex digits that are the same
everywhere.

Times are seconds since 1970, so that they compare and subtract: date("2013-01-31T10:00:00Z") or date(x, "%d/%m/%Y") makes
them, now() is the start of the run, iso(t) makes text of them. year month day hour minute second weekday (Monday is 1) take
either. Everything is in UTC."""
    examples = (
        (
            'etl filter \'dep_delay > 60 and origin in ["JFK", "LGA"]\' flights.ndjson',
            "late departures from two airports",
        ),
        ("etl filter 'not exists(dep_delay)' flights.ndjson", "flights that never left"),
        (
            "etl filter 'matches(tailnum, \"^N1\") and month(time_hour) == 1' flights.ndjson",
            "a pattern and a part of a time",
        ),
        (
            "etl filter 'coalesce(dep_delay, 0) <= 0' --on-error skip flights.ndjson",
            "null counts as 0; odd ones are skipped",
        ),
    )

    rewrites = False

    class Params(params.Declared):
        expr = params.text("Condition to keep a record.", required=True, metavar="EXPR", positional=True)

        def verify(self) -> None:
            try:
                check_condition(self.expr)
            except ValueError as error:
                raise ValueError(f"expr: {error}") from None

    def __init__(self, params: Any, ctx: Context, state: State | None = None) -> None:
        super().__init__(params, ctx, state)
        self._expression = Expression(params.expr, now=ctx.started)

    def reads(self) -> tuple[Path, ...]:
        return self._expression.paths

    def prepare(self, batch: Batch) -> Prepared:
        kept, errors = self._expression.select(batch.count, batch.columns(self._expression.paths))
        rejects = [batch.reject(index, "bad_type", [error]) for index, error in errors.items()]
        dropped = batch.count - len(kept) - len(rejects)
        return Prepared(
            batch.take(kept) if len(kept) < batch.count else batch, rejects, {"filtered": dropped} if dropped else None
        )

    def explain(self, record: Batch) -> list[str]:
        return judged(record, self._expression)
