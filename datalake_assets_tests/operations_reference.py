"""Writes ``docs/reference/operations.md`` from the write API's own OpenAPI document, so that it cannot drift.

``python -m datalake_assets_tests.operations_reference`` writes the file; a test fails when it is out of date.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datalake_assets.operations.access import STATUS
from datalake_assets.operations.openapi import PATH, openapi_document
from datalake_assets.operations.requests import MAX_DEPTH, MAX_REQUEST_BYTES, request_models

__all__ = ["REFERENCE", "reference"]

REFERENCE = Path(__file__).parents[1] / "docs" / "reference" / "operations.md"
_HEAD = f"""\
# Operations

<!-- made by `python -m datalake_assets_tests.operations_reference`; change the models, not this file -->

The write API takes one JSON document per request and answers with one. It is served to Python
(`datalake_assets.operations.Operations`), to `datalake ops`, and over HTTP (`datalake serve ops`: post to `{PATH}`).
How to use it: [Write records from a program](../how-to/operations.md).

A request has at most {MAX_REQUEST_BYTES:,} bytes, and lists and objects in each other up to {MAX_DEPTH} deep. Unknown
fields and fields that are there twice are refused, and nothing is converted: `"1"` is no number, `1` is not `true`.

Integers are read whole, whatever their length, and are refused where their column would change them. A number with a
point or an exponent is read as the nearest double; a `float` column takes it if 32 bits keep its digits, as of `0.1`.
"""
_ROOT = "#/components/schemas/"


def reference() -> str:
    """The reference as Markdown."""
    schemas = openapi_document()["components"]["schemas"]
    answers = {_operation(schema): name for name, schema in schemas.items() if name.endswith("Answer")}
    lines = [_HEAD]
    for model in request_models():
        schema = schemas[model.__name__]
        answer = schemas[answers[_operation(schema)]]
        lines += [f"## {_operation(schema)}\n", f"{schema['description']}\n", *_table("field", schema)]
        lines += [f"\nAnswer: {answer['description']}\n", *_table("answer", answer), ""]
    lines += ["## Parts\n"]
    for name in sorted(_named(schemas) - {"Code", "Failure"}):
        lines += [f"### {name}\n", f"{schemas[name]['description']}\n", *_table("field", schemas[name]), ""]
    lines += ["## Failures\n", "Every failed request is answered with `ok: false` and an `error`.\n"]
    lines += [*_table("field of `error`", schemas["Failure"]), "", "| `code` | HTTP status |", "|---|---|"]
    lines += [f"| `{code}` | {status} |" for code, status in STATUS.items()]
    return "\n".join(lines) + "\n"


def _operation(schema: Mapping[str, Any]) -> str:
    field = schema.get("properties", {}).get("operation", {})
    return str(field.get("const", ""))


def _named(schemas: Mapping[str, Any]) -> set[str]:
    return {name for name, schema in schemas.items() if not _operation(schema) and name != "FailureAnswer"}


def _table(heading: str, schema: Mapping[str, Any]) -> Iterator[str]:
    required = schema.get("required", ())
    yield f"| {heading} | values | default | meaning |"
    yield "|---|---|---|---|"
    for name, field in schema["properties"].items():
        if name != "ok" and not (name == "operation" and "const" in field):
            default = "(required)" if name in required else _default(field.get("default"))
            meaning = field.get("description", "").replace("|", "\\|")
            yield f"| `{name}` | {_values(field)} | {default} | {meaning} |"


def _default(value: object) -> str:
    if value is None or (isinstance(value, list | dict) and not value):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _values(field: Mapping[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].removeprefix(_ROOT)
        return "see below" if name == "Code" else f"[{name}](#{name.lower()})"
    if "anyOf" in field:
        return " or ".join(_values(each) for each in field["anyOf"] if each != {"type": "null"})
    if "enum" in field or "const" in field:
        return ", ".join(f"`{each}`" for each in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"list of {_values(field['items'])}{_bounds(field, 'minItems', 'maxItems')}"
    kind = {"string": "text", "boolean": "true, false"}.get(field.get("type", ""), field.get("type", "anything"))
    if field.get("format") == "date-time":
        return "a moment, as ISO 8601 with its zone"
    return kind + _pattern(field) + _bounds(field, "minLength", "maxLength") + _bounds(field, "minimum", "maximum")


def _pattern(field: Mapping[str, Any]) -> str:
    return f" `{field['pattern'].removeprefix('^').removesuffix('$')}`" if "pattern" in field else ""


def _bounds(field: Mapping[str, Any], least: str, most: str) -> str:
    stated = [f"{sign} {field[name]:,}" for sign, name in (("≥", least), ("≤", most)) if name in field]
    return f" ({', '.join(stated)})" if stated else ""


if __name__ == "__main__":
    REFERENCE.write_text(reference(), encoding="utf-8")
