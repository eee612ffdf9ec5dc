"""Which records are valid, and every error of those that are not.

The engine is jsonschema-rs, which passes the official suites of all five drafts. It is never let near a file or the
network, `format` is asserted only when asked for, in every draft, and what it raises becomes a `SchemaError` when the
schema is compiled or an error of the record when it is judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NoReturn

import jsonschema_rs
import msgspec

from etlcli.core.batch import Batch, decode_record
from etlcli.core.edit import encode, raw_at
from etlcli.core.fields import pointer
from etlcli.core.projection import Projection
from etlcli.errors import SchemaError
from etlcli.schema.load import Schema
from etlcli.schema.shape import Shape

MAX_ERRORS = 100
"""Errors listed for one record."""
MAX_EXCERPT = 120
"""Characters of a value that an error shows."""
MAX_MESSAGE = 400

_ENGINES: dict[int, type[jsonschema_rs.Validator]] = {
    4: jsonschema_rs.Draft4Validator,
    6: jsonschema_rs.Draft6Validator,
    7: jsonschema_rs.Draft7Validator,
    2019: jsonschema_rs.Draft201909Validator,
    2020: jsonschema_rs.Draft202012Validator,
}
# Stands for the value in the engine's messages, so that a value of megabytes is never formatted. No text has it: it is a
# code point that Unicode reserves for a program's own use.
_VALUE = "\ufdd0"
_TYPES = "array, boolean, integer, null, number, object, string"


# What the engine may raise for a record it cannot take in: nothing that a signal raises is among them.
_ENGINE_ERRORS = (ValueError, TypeError, OverflowError, RecursionError, ArithmeticError)


class Verdict:
    """A compiled schema."""

    def __init__(self, schema: Schema, *, formats: bool = False) -> None:
        """Raises SchemaError naming the place in the schema, for anything that is wrong with it."""
        self._schema = schema
        self._engine = compiled(schema, formats)
        self._shape = Shape.of(schema, lambda part: subvalidator(part, schema.draft, formats), formats=formats)

    def projection(self, plain: Projection) -> Projection | None:
        """See `Shape.projection`."""
        return self._shape.projection(plain) if self._shape else None

    def suspects(self, batch: Batch) -> Sequence[int]:
        """The indices of the records that may not be valid, in order: a cheap answer where the schema allows one."""
        return self.invalid(batch) if self._shape is None else self._shape.suspects(batch)

    def invalid(self, batch: Batch) -> list[int]:
        """The indices of the records that are not valid, in order."""
        suspects = range(batch.count) if self._shape is None else self._shape.suspects(batch)
        if len(suspects) * 2 < batch.count:
            return [index for index in suspects if not self._is_valid(batch.line(index))]
        try:
            verdicts = list(map(self._engine.is_valid, batch.records()))
        except _ENGINE_ERRORS:  # by one of them: which?
            verdicts = list(map(self._is_valid, batch.lines))
        return [] if all(verdicts) else [index for index, valid in enumerate(verdicts) if not valid]

    def errors(self, line: bytes) -> list[dict[str, Any]]:
        """Every error of an invalid record, at most MAX_ERRORS and then a note; in the engine's order, which follows the
        schema. Never empty."""
        try:
            found = [self._explain(error, line) for error in islice(self._errors(line), MAX_ERRORS + 1)]
        except _ENGINE_ERRORS as error:
            return [{"pointer": "", "message": f"cannot be judged: {error}"[:MAX_MESSAGE]}]
        if len(found) > MAX_ERRORS:
            found[MAX_ERRORS] = {"pointer": "", "message": f"and more: the first {MAX_ERRORS} errors are listed"}
        return found or [{"pointer": "", "message": "not valid against the schema"}]

    def _is_valid(self, line: bytes) -> bool:
        try:
            return self._engine.is_valid(decode_record(line))
        except _ENGINE_ERRORS:
            return False

    def _errors(self, line: bytes) -> Iterator[jsonschema_rs.ValidationError]:
        return self._engine.iter_errors(decode_record(line))

    def _explain(self, error: jsonschema_rs.ValidationError, line: bytes) -> dict[str, Any]:
        absolute = error.absolute_keyword_location
        value = _excerpt(_offending(error, line))
        shown = value if len(value) <= 60 else value[:59] + "…"
        message = error.message.replace(_VALUE, shown, 1)
        if error.kind.name == "falseSchema":
            message = (
                "no properties are allowed"
                if _is_closed(error)
                else f"{shown} is not allowed: the schema here is false"
            )
        return {
            "pointer": pointer(error.instance_path),
            "keyword": _keyword(error),
            "schema_pointer": self._schema.locate(absolute) if absolute else pointer(error.schema_path),
            "message": message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…",
            "value": value,
        }


def compiled(schema: Schema, formats: bool) -> jsonschema_rs.Validator:
    """The engine for a whole schema. Raises SchemaError."""
    try:
        return _ENGINES[schema.draft](
            schema.document, validate_formats=formats, retriever=_refuse, mask=_VALUE, ignore_unknown_formats=True
        )
    except jsonschema_rs.ValidationError as error:
        raise _explained(schema, error) from None
    except jsonschema_rs.ReferencingError as error:
        raise _bad_reference(schema, str(error)) from None
    except _ENGINE_ERRORS as error:
        raise schema.error(str(error)) from None


def subvalidator(part: dict[str, Any], draft: int, formats: bool) -> jsonschema_rs.Validator:
    """The engine for a piece of a schema that refers to nothing outside itself."""
    return _ENGINES[draft](part, validate_formats=formats, retriever=_refuse)


def _offending(error: jsonschema_rs.ValidationError, line: bytes) -> bytes:
    """The value that an error is about, as it is spelled in the record."""
    try:
        return raw_at(line, error.instance_path)
    except (LookupError, ValueError, msgspec.MsgspecError):  # the engine leaves names that are empty out of its paths
        return encode(error.instance)


def _excerpt(raw: bytes) -> str:
    # Four bytes a character at most; a character that the cut splits is dropped.
    text = raw[: 4 * MAX_EXCERPT + 4].decode(errors="ignore")
    return text if len(text) <= MAX_EXCERPT else text[: MAX_EXCERPT - 1] + "…"


def _keyword(error: jsonschema_rs.ValidationError) -> str:
    """The keyword that failed: the end of its path, but under a schema that is `false`, where that may be a name."""
    if error.kind.name == "falseSchema":
        return "additionalProperties" if _is_closed(error) else "falseSchema"
    return str(error.schema_path[-1]) if error.schema_path else error.kind.name


def _is_closed(error: jsonschema_rs.ValidationError) -> bool:
    # An object that may have no properties at all has this kind of error, not the one of additionalProperties.
    return error.schema_path[-1:] == ["additionalProperties"] and error.schema_path[-2:-1] != ["properties"]


def _refuse(uri: str) -> NoReturn:
    raise LookupError(uri)


def _explained(schema: Schema, error: jsonschema_rs.ValidationError) -> SchemaError:
    if error.kind.name == "$ref":
        return _bad_reference(schema, error.message)
    place = tuple(error.instance_path)
    value = _excerpt(encode(error.instance))
    if isinstance(error.kind, jsonschema_rs.ValidationErrorKind.Format) and error.kind.format == "regex":
        return schema.error(f"{value} is not a regular expression", place)
    if place[-1:] == ("type",) and error.kind.name == "anyOf":
        return schema.error(f"{value} is not a type", place, f"types are {_TYPES}")
    return schema.error(error.message.replace(_VALUE, value, 1)[:MAX_MESSAGE], place)


def _bad_reference(schema: Schema, message: str) -> SchemaError:
    """The engine does not say where the reference is that it could not follow."""
    hint = "nothing is fetched: put the schema under $defs, with its $id, and refer to that"
    for place, text, target in schema.references():
        if target is not None or "json-schema.org/draft" in text:
            continue
        if text.startswith("#"):
            return schema.error(f"the reference {text!r} leads to nothing", place)
        return schema.error(f"the reference {text!r} leads out of the schema", place, hint)
    return schema.error(message.partition("\n")[0], hint=hint)
