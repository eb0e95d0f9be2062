"""What ``deploy/queues`` and ``deploy/files`` have, as far as it can be checked without an account of AWS."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner

from datalake_assets.cli.app import app
from datalake_assets.settings import settings_model
from datalake_assets_tests.operations.cloudformation import complaints, template_of

QUEUES = Path(__file__).parents[2] / "deploy" / "queues"
FILES = QUEUES.with_name("files")


def template(name, folder=QUEUES):
    return template_of(folder / name)["Resources"]


@pytest.mark.slow
@pytest.mark.parametrize("path", [QUEUES / "fargate.yaml", QUEUES / "lambda.yaml", FILES / "fargate.yaml"], ids=str)
def test_templates_are_some_that_cloudformation_takes(path):
    assert complaints(path) == []


def commands():
    for folder in (QUEUES, FILES):
        (container,) = template("fargate.yaml", folder)["Task"]["Properties"]["ContainerDefinitions"]
        yield [word if isinstance(word, str) else "9" for word in container["Command"]]
    text = (QUEUES / "Dockerfile").read_text()
    yield json.loads(text[text.rindex("CMD ") + 4 :])
    for path in (QUEUES / "datalake-run.service", FILES / "datalake-files.service"):
        unit = configparser.ConfigParser(interpolation=None, strict=True)
        unit.optionxform = str
        unit.read_string(path.read_text())
        yield shlex.split(unit["Service"]["ExecStart"])


def test_commands_are_some_that_there_are():
    for words in commands():
        result = CliRunner().invoke(app, [*words[1:], "--help"], prog_name="datalake")
        assert (Path(words[0]).name, result.exit_code) == ("datalake", 0)
        assert set(re.findall(r"--[a-z-]+", " ".join(words))) <= set(re.findall(r"--[a-z-]+", result.output))


def test_function_has_a_handler_and_takes_partial_answers():
    resources = template("lambda.yaml")
    (command,) = resources["Landing"]["Properties"]["ImageConfig"]["Command"]
    module, _, name = command.rpartition(".")
    assert callable(getattr(import_module(module), name))
    assert resources["Messages"]["Properties"]["FunctionResponseTypes"] == ["ReportBatchItemFailures"]


def test_settings_are_some_that_there_are():
    known = {f"DATALAKE_{name.upper()}" for name in settings_model().model_fields}
    files = [*QUEUES.iterdir(), *FILES.iterdir()]
    named = {name for each in files for name in re.findall(r"\bDATALAKE_[A-Z_]+", each.read_text())}
    assert "DATALAKE_LAKE" in named
    assert named <= known
