"""`validate`: records against a JSON Schema, with defaults and lossless coercion on the way."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from etlcli.core import params
from etlcli.core.batch import Batch
from etlcli.core.stage import Context, Prepared, Stage, State


class Validate(Stage):
    """Valid records go on, the others are rejected with every error. All of it is `prepare`."""

    help = """Check records against a JSON Schema.

Valid records go on byte for byte; an invalid one is rejected with all its errors, each with its JSON Pointer, its keyword,
the keyword's place in the schema and the value. Drafts 4, 6, 7, 2019-09 and 2020-12 are known, by $schema; without one it
is 2020-12. Nothing is ever fetched: a reference that leads out of the schema file is an error.

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
        ("etl validate --schema flight.schema.json --check flights.ndjson", "report every finding, put nothing out"),
        ("etl validate --schema flight.schema.json --coerce --defaults flights.ndjson", "repair what can be repaired"),
    )

    class Params(params.Declared):
        schema = params.path("The JSON Schema file.", required=True)
        defaults = params.flag("Fill in missing fields that are required and have a default.")
        coerce = params.flag('Change types without loss where the schema wants another: "12" to 12.')
        formats = params.flag("Assert format (date-time, email, ...), which is an annotation otherwise.")
        check = params.flag("Put no records out; report every finding and exit 1 if there is one.")

    def __init__(self, params: Any, ctx: Context, state: State | None = None) -> None:
        super().__init__(params, ctx, state)
        # The engine takes 25 ms to import: only a run that validates pays for it.
        from etlcli.schema.fill import Fill
        from etlcli.schema.load import load
        from etlcli.schema.verdict import Verdict

        schema = load(os.path.join(ctx.base_dir, params.schema), params.schema)
        self._verdict = Verdict(schema, formats=params.formats)
        self._fill = Fill(schema, defaults=params.defaults, coerce=params.coerce)
        self.reports = params.check

    def prepare(self, batch: Batch) -> Prepared:
        judged, invalid = self._judge(batch)
        # A reject holds the record as it came, its errors are about the record as it was judged.
        rejects = [
            batch.reject(index, "schema", partial(self._verdict.errors, judged.lines[index])) for index in invalid
        ]
        if self.reports:
            return Prepared(batch.take([]), rejects, {"checked": batch.count - len(invalid)})
        return Prepared(judged.without(set(invalid)) if invalid else judged, rejects)

    def _judge(self, batch: Batch) -> tuple[Batch, list[int]]:
        """The batch with what --defaults and --coerce change in it, and the indices of what is invalid even so."""
        if not self._fill.active:
            return batch, self._verdict.invalid(batch)
        suspects = self._verdict.suspects(batch)
        if not suspects:
            return batch, []
        doubtful = batch.take(suspects)
        changes = self._fill.changes(doubtful)
        invalid = self._verdict.invalid(doubtful.replace(changes))
        return batch.replace({suspects[at]: line for at, line in changes.items()}), [suspects[at] for at in invalid]
