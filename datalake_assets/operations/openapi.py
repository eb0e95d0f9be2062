"""The write API described for programs and people, from its models and their docstrings, so that it cannot drift."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

from markupsafe import Markup, escape
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from datalake_assets.operations.answers import (
    Answer,
    CompactStats,
    Failure,
    FailureAnswer,
    PartitionField,
    QueryColumn,
    SnapshotFacts,
    TableName,
)
from datalake_assets.operations.requests import ColumnSpec, PartitionSpec, operation_of, request_models

__all__ = ["PATH", "attributes_of", "openapi_document", "openapi_page"]

#: Models that are parts of others.
_PARTS = (ColumnSpec, CompactStats, PartitionSpec, PartitionField, TableName, QueryColumn, SnapshotFacts, Failure)
#: Where every request is posted.
PATH = "/v1/operations"
_REFERENCE = "#/components/schemas/{model}"


def answer_models() -> tuple[type[BaseModel], ...]:
    """The answers, one model per operation."""
    return tuple(Answer.__subclasses__())


def attributes_of(model: type) -> dict[str, str]:
    """What the docstrings of a model, and of those that it builds on, say of its fields."""
    found: dict[str, str] = {}
    for each in reversed(model.__mro__[:-1]):
        section = (inspect.getdoc(each) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
        entries = re.findall(r"^    (\w+): (.*(?:\n {6,}.*)*)", section, re.MULTILINE)
        found |= {name: " ".join(text.split()).replace("``", "`") for name, text in entries}
    return found


@cache
def openapi_document() -> Mapping[str, Any]:
    """The OpenAPI 3.1 document."""
    requests, answers = request_models(), answer_models()
    every: list[type[BaseModel]] = [*requests, *answers, FailureAnswer]
    _, definitions = models_json_schema(
        [(model, "validation" if model in requests else "serialization") for model in every],
        ref_template=_REFERENCE,
        by_alias=True,
    )
    schemas = definitions["$defs"]
    described: list[type[BaseModel]] = [*every, *_PARTS]
    for model in described:
        _describe(schemas[model.__name__], model)
    mapping = {operation_of(model): _REFERENCE.format(model=model.__name__) for model in requests}
    request = {"oneOf": _references(requests), "discriminator": {"propertyName": "operation", "mapping": mapping}}
    failure = {"description": "It was not done.", "content": _json(_references([FailureAnswer])[0])}
    done = {"description": "It was done.", "content": _json({"oneOf": _references(answers)})}
    post = {
        "summary": "Do one operation.",
        "security": [{"token": []}],
        "requestBody": {"required": True, "content": _json(request)},
        "responses": {"200": done, "default": failure},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "datalake operations", "version": version("datalake-assets")},
        "paths": {PATH: {"post": post}},
        "components": {"schemas": schemas, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _references(models: Any) -> list[dict[str, str]]:
    return [{"$ref": _REFERENCE.format(model=model.__name__)} for model in models]


def _json(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _describe(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Puts what the docstring says of the fields where OpenAPI has it."""
    schema["description"] = _summary(model)
    described = attributes_of(model)
    for name, field in schema.get("properties", {}).items():
        if name in described:
            field["description"] = described[name]


def _summary(model: type) -> str:
    return " ".join((inspect.getdoc(model) or "").partition("\n\n")[0].split()).replace("``", "`")


@cache
def openapi_page() -> str:
    """A page for people; it loads nothing from elsewhere."""
    document = openapi_document()
    schemas = document["components"]["schemas"]
    sections = [
        Markup("<h2><code>{}</code></h2><p>{}</p>{}{}").format(
            operation_of(model),
            _summary(model),
            _fields("request", schemas[model.__name__]),
            _fields("answer", schemas[answer.__name__]),
        )
        for model, answer in zip(request_models(), _answers_in_order(), strict=True)
    ]
    return _PAGE.format(version=document["info"]["version"], path=PATH, sections=Markup("").join(sections))


def _answers_in_order() -> list[type[BaseModel]]:
    by_operation = {operation_of(model): model for model in answer_models()}
    return [by_operation[operation_of(model)] for model in request_models()]


def _fields(title: str, schema: Mapping[str, Any]) -> Markup:
    rows = [
        Markup("<tr><td><code>{}</code>{}</td><td>{}</td></tr>").format(
            name, " *" if name in schema.get("required", ()) else "", field.get("description", "")
        )
        for name, field in schema.get("properties", {}).items()
    ]
    return Markup("<table><tr><th>{}</th><th></th></tr>{}</table>").format(escape(title), Markup("").join(rows))


_PAGE = Markup("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>datalake operations</title>
<style>body{{font:15px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse;margin:.5rem 0 1rem;width:100%}}
td,th{{border-bottom:1px solid #ddd;padding:.2rem .6rem .2rem 0;text-align:left;vertical-align:top}}
td:first-child{{white-space:nowrap}}</style>
<h1>datalake operations {version}</h1>
<p>Post a JSON document to <code>{path}</code> with <code>Authorization: Bearer TOKEN</code>; fields with * are
required. The same for programs: <a href="/openapi.json">openapi.json</a>.</p>
{sections}
</html>
""")
