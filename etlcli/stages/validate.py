"""`validate`: records against a JSON Schema and rules, with defaults and lossless coercion on the way."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from etlcli.core import params
from etlcli.core.batch import Batch, Errors
from etlcli.core.expressions import Expression, check_condition
from etlcli.core.fields import MISSING, Path, pointer
from etlcli.core.functions import described
from etlcli.core.projection import Projection
from etlcli.core.stage import Context, Prepared, Stage, State

if TYPE_CHECKING:
    from etlcli.schema.fill import Fill
    from etlcli.schema.verdict import Verdict


class Validate(Stage):
    """Valid records go on, the others are rejected with every error. All of it is `prepare`."""

    help = """Check records against a JSON Schema, against rules, or both.

Valid records go on byte for byte; an invalid one is rejected with all its errors, each with its JSON Pointer, its keyword,
the keyword's place in the schema and the value. Drafts 4, 6, 7, 2019-09 and 2020-12 are known, by $schema; without one it
is 2020-12. Nothing is ever fetched: a reference that leads out of the schema file is an error.

A rule is a condition as etl filter has them, such as 'distance > 0'. It must be true: a record for which it is false or
unknown, because a field is null or missing, or for which it cannot be computed, is rejected, with all that is wrong with
it by the schema and by every rule. Rules see what --defaults and --coerce have changed.

--defaults fills in what is required, missing and has a default, in nested objects and arrays too. --coerce changes a
value's type where the schema wants another one and nothing is lost: "12" to 12, "true" to true, 1.10 to "1.10"; NA, "",
" 12" and 007 stay and are rejected. Both reach through properties, items, allOf and $ref, not through choices (anyOf,
oneOf, if). A valid record is never changed, and the other fields of a changed one keep their bytes.

--check puts no records out: it shows every finding, and exits 1 if there is one."""
    examples = (
        ("etl validate --schema flight.schema.json flights.ndjson", "stop at the first invalid record"),
        (
            "etl validate --schema flight.schema.json --on-error quarantine --quarantine bad.ndjson flights.ndjson",
            "valid records to stdout, the others with their errors to bad.ndjson",
        ),
        (
            "etl validate --rule 'distance > 0' --rule 'air_time < 24 * 60' --on-error skip flights.ndjson",
            "rules alone",
        ),
        ("etl validate --schema flight.schema.json --check flights.ndjson", "report every finding, put nothing out"),
        ("etl validate --schema flight.schema.json --coerce --defaults flights.ndjson", "repair what can be repaired"),
    )

    class Params(params.Declared):
        schema = params.path("The JSON Schema file.")
        rules = params.texts(
            "Condition that must be true of every record; may be given several times.", metavar="EXPR", singular="rule"
        )
        defaults = params.flag("Fill in missing fields that are required and have a default.")
        coerce = params.flag('Change types without loss where the schema wants another: "12" to 12.')
        formats = params.flag("Assert format (date-time, email, ...), which is an annotation otherwise.")
        check = params.flag("Put no records out; report every finding and exit 1 if there is one.")

        def verify(self) -> None:
            if not self.schema and not self.rules:
                raise ValueError("schema: nothing to check by; give a schema, a rule or both")
            for name in ("defaults", "coerce", "formats"):
                if getattr(self, name) and not self.schema:
                    raise ValueError(f"{name}: needs a schema")
            for rule in self.rules:
                try:
                    check_condition(rule)
                except ValueError as error:
                    raise ValueError(f"rules: {rule!r}: {error}") from None

    def __init__(self, params: Any, ctx: Context, state: State | None = None) -> None:
        super().__init__(params, ctx, state)
        self._verdict: Verdict | None = None
        self._fill: Fill | None = None
        if params.schema:
            # The engine takes 25 ms to import: only a run that validates by a schema pays for it.
            from etlcli.schema.fill import Fill
            from etlcli.schema.load import load
            from etlcli.schema.verdict import Verdict

            schema = load(os.path.join(ctx.base_dir, params.schema), params.schema)
            self._verdict = Verdict(schema, formats=params.formats)
            fill = Fill(schema, defaults=params.defaults, coerce=params.coerce)
            self._fill = fill if fill.active else None
        self._rules = [Expression(rule, now=ctx.started) for rule in params.rules]
        self.rewrites = self._fill is not None
        self.reports = params.check

    def reads(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(path for rule in self._rules for path in rule.paths))

    def projection(self, plain: Projection) -> Projection | None:
        return self._verdict.projection(plain) if self._verdict else None

    def prepare(self, batch: Batch) -> Prepared:
        judged, invalid = self._judge(batch)
        broken = self._broken(judged)
        bad = set(invalid)
        # A reject holds the record as it came, its errors are about the record as it was judged.
        rejects = [
            batch.reject(
                index,
                "schema" if index in bad else "rule",
                partial(self._errors, judged.line(index), index, index in bad, broken.get(index, ())),
            )
            for index in sorted(bad | broken.keys())
        ]
        if self.reports:
            return Prepared(batch.take([]), rejects, {"checked": batch.count - len(rejects)})
        return Prepared(judged.without(bad | broken.keys()) if rejects else judged, rejects)

    def _judge(self, batch: Batch) -> tuple[Batch, Sequence[int]]:
        """The batch with what --defaults and --coerce change in it, and the indices of what the schema does not allow even
        so."""
        if self._verdict is None:
            return batch, ()
        if self._fill is None:
            return batch, self._verdict.invalid(batch)
        suspects = self._verdict.suspects(batch)
        if not suspects:
            return batch, []
        doubtful = batch.take(suspects)
        changes = self._fill.changes(doubtful)
        invalid = self._verdict.invalid(doubtful.replace(changes))
        return batch.replace({suspects[at]: line for at, line in changes.items()}), [suspects[at] for at in invalid]

    def _broken(self, batch: Batch) -> dict[int, list[Broken]]:
        """What is said of the records for which a rule is not true, by index."""
        if not self._rules:
            return {}
        columns = dict(zip(self.reads(), batch.columns(self.reads()), strict=True))
        broken: dict[int, list[Broken]] = {}
        for rule in self._rules:
            read = [columns[path] for path in rule.paths]
            good, errors = rule.select(batch.count, read)
            for index in set(range(batch.count)).difference(good) if len(good) < batch.count else ():
                broken.setdefault(index, []).append(Broken(rule, read, errors.get(index)))
        return broken

    def _errors(self, line: bytes, index: int, invalid: bool, broken: Iterable[Broken]) -> Errors:
        found = self._verdict.errors(line) if invalid and self._verdict else []
        return [*found, *(rule.explain(index) for rule in broken)]


class Broken(NamedTuple):
    """A rule that a record breaks, the columns that it read and, where it could not be computed, why."""

    rule: Expression
    columns: list[list[Any]]
    error: dict[str, Any] | None

    def explain(self, index: int) -> dict[str, Any]:
        place = pointer(self.rule.paths[0]) if len(self.rule.paths) == 1 else ""
        error = self.error or {"pointer": place, "message": self._values(index)}
        return {**error, "keyword": "rule", "message": f"rule {self.rule.text}: {error['message']}"}

    def _values(self, index: int) -> str:
        found = [column[index] for column in self.columns]
        told = ["missing" if value is MISSING else described(value) for value in found]
        values = (f"{'.'.join(path)} is {text}" for path, text in zip(self.rule.paths, told, strict=True))
        return ", ".join(values) or "never true"
