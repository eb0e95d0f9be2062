"""What ``deploy/`` has, as far as it can be checked without an account of AWS; nothing is deployed.

By CloudFormation's linter, by Lambda's runtime client on an S3 server and moto's Glue, and by the commands themselves.
"""

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
from datalake_assets.operations.openapi import PATH
from datalake_assets.settings import settings_model
from datalake_assets_tests.operations.cloudformation import complaints, template_of
from datalake_assets_tests.operations.conftest import ORDERS, SCHEMA
from datalake_assets_tests.operations.lambda_runtime import LambdaFunction
from datalake_assets_tests.operations.shared_catalogs import SharedCatalog, glue_server

DEPLOY = Path(__file__).parents[2] / "deploy"
TEMPLATE = DEPLOY / "aws-lambda" / "template.yaml"
TOKEN = "a" * 32
#: What the functions have besides the template's settings, with where the servers of the test are.
HERE = {"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}


@pytest.fixture(scope="module")
def template():
    return template_of(TEMPLATE)


def resources(template, kind):
    return {name: each["Properties"] for name, each in template["Resources"].items() if each["Type"] == kind}


def resolved(value, parameters):
    """A value of the template, as CloudFormation makes it of parameters."""
    if isinstance(value, str):
        return value
    if "Ref" in value:
        return parameters[value["Ref"]]
    text = re.sub(r"\$\{(\w+)\}", lambda found: parameters[found[1]], value["Fn::Sub"])
    return re.sub(r"\{\{resolve:secretsmanager:(.+?)\}\}", lambda found: parameters[f"secret {found[1]}"], text)


@pytest.mark.slow
def test_template_is_one_that_cloudformation_takes():
    assert complaints(TEMPLATE) == []


def test_routes_of_the_template_are_those_that_the_handler_answers(template):
    routes = {each["RouteKey"] for each in resources(template, "AWS::ApiGatewayV2::Route").values()}

    assert routes == {f"POST {PATH}", "GET /health", "GET /openapi.json"}


def test_functions_of_the_template_have_a_handler_and_settings_that_there_are(template):
    functions = resources(template, "AWS::Lambda::Function")
    known = {f"DATALAKE_{name.upper()}" for name in settings_model().model_fields}

    assert functions.keys() == {"Operations", "Compaction"}
    for each in functions.values():
        (command,) = each["ImageConfig"]["Command"]
        module, _, name = command.rpartition(".")
        assert callable(getattr(import_module(module), name))
        assert each["Environment"]["Variables"].keys() <= known
        assert f'CMD ["{command}"]' in (DEPLOY / "aws-lambda" / "Dockerfile").read_text()


@pytest.mark.s3
def test_functions_of_the_template_answer_requests_and_compact_at_night(template, s3_server):
    parameters = {
        "Bucket": s3_server.bucket,
        "Prefix": "lambda",
        "Namespace": "records",
        "Environment": "development",
        "TokensSecret": "tokens",
        "secret tokens": json.dumps({"acme": TOKEN}),
    }
    functions = resources(template, "AWS::Lambda::Function")
    with glue_server() as glue:
        shared = SharedCatalog(s3_server, glue=glue, namespace="records", lake=f"s3://{s3_server.bucket}/lambda")
        local = {name: shared.environment[name] for name in shared.environment if not name.startswith("DATALAKE_LAKE")}
        results = {}
        for name, requests in (("Operations", _requests()), ("Compaction", [_schedule()])):
            variables = functions[name]["Environment"]["Variables"]
            settings = {key: resolved(value, parameters) for key, value in variables.items()}
            with LambdaFunction(functions[name]["ImageConfig"]["Command"][0], HERE | local | settings) as function:
                results[name] = [function.invoke(each) for each in requests]
        snapshots = shared.table().snapshots()

    answers = [json.loads(response["body"]) for response, failed in results["Operations"] if not failed]
    assert [each["ok"] for each in answers] == [True] * 5
    assert answers[-1]["rows"] == [[3]]
    ((report, failed),) = results["Compaction"]
    assert (failed, report["compacted"], report["failed"]) == (False, 1, [])
    assert [each.summary.operation.value for each in snapshots] == ["append", "append", "append", "replace"]


def _requests():
    bodies = [
        {"operation": "CREATE_TABLE", **ORDERS, "schema": SCHEMA},
        *({"operation": "WRITE", **ORDERS, "records": [{"id": number}]} for number in range(3)),
        {"operation": "QUERY", **ORDERS, "sql": "SELECT count(*) FROM orders"},
    ]
    return [
        {
            "version": "2.0",
            "routeKey": f"POST {PATH}",
            "rawPath": PATH,
            "headers": {"authorization": f"Bearer {TOKEN}"},
            "requestContext": {"http": {"method": "POST", "path": PATH}, "stage": "$default"},
            "body": json.dumps(body),
            "isBase64Encoded": False,
        }
        for body in bodies
    ]


def _schedule():
    """What a rule of EventBridge sends (its user guide, "Events from scheduled rules")."""
    return {
        "version": "0",
        "id": "53dc4d37-cffa-4f76-80c9-8b7d4a4d2eaa",
        "detail-type": "Scheduled Event",
        "source": "aws.events",
        "account": "123456789012",
        "time": "2026-01-31T02:00:00Z",
        "region": "us-east-1",
        "resources": ["arn:aws:events:us-east-1:123456789012:rule/nightly"],
        "detail": {},
    }


@pytest.mark.parametrize("file", ["datalake-ops.service", "datalake-compact.service", "Dockerfile"])
def test_command_of_the_server_is_one_that_there_is(file):
    text = (DEPLOY / "server" / file).read_text()
    if file == "Dockerfile":
        words = json.loads(text[text.rindex("CMD ") + 4 :])
    else:
        unit = configparser.ConfigParser(interpolation=None, strict=True)
        unit.optionxform = str
        unit.read_string(text)
        words = shlex.split(unit["Service"]["ExecStart"])

    result = CliRunner().invoke(app, [*words[1:], "--help"], prog_name="datalake")

    assert Path(words[0]).name == "datalake"
    assert result.exit_code == 0, result.output
    assert set(re.findall(r"--[a-z-]+", " ".join(words))) <= set(re.findall(r"--[a-z-]+", result.output))


def test_settings_of_the_server_are_some_that_there_are():
    known = {f"DATALAKE_{name.upper()}" for name in settings_model().model_fields}
    files = [DEPLOY / "server" / "ops.env", DEPLOY / "server" / "Dockerfile", DEPLOY / "README.md"]
    named = {name for each in files for name in re.findall(r"\bDATALAKE_[A-Z_]+", each.read_text())}

    assert named <= known
    assert "DATALAKE_OPS_TOKENS_FILE" in named
