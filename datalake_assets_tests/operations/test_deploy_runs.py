"""The examples of run launchers: Dagster loads them, and they ask Kubernetes, ECS and Docker for what they say."""

from __future__ import annotations

import configparser
import json
import shlex
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import pytest
import yaml
from click.testing import CliRunner
from dagster._core.launcher import LaunchRunContext  # noqa: TID251  what the daemon hands to a launcher

from datalake_assets.core.compaction.run_groups import RunEstimate
from datalake_assets.defs.launchers import compaction_tags
from datalake_assets.settings import Settings
from datalake_assets_tests.lake.feeds import stream_feed
from datalake_assets_tests.operations.cloudformation import complaints, template_of

RUNS = Path(__file__).parents[2] / "deploy" / "runs"
ESTIMATE = RunEstimate(size_bytes=8 << 30, work_s=118.2, cores=2, memory_bytes=912 << 20)


@dg.op
def compact() -> None: ...


@dg.job
def compact_partition() -> None:
    compact()


@dg.repository
def location() -> list[dg.JobDefinition]:
    return [compact_partition]


@contextmanager
def launching(folder: Path, name: str, **config: object) -> Iterator[Callable[[str], dg.DagsterRun]]:
    """An instance by an example, with its history in the folder; launches runs that say what they will take."""
    document = yaml.safe_load((RUNS / name / "dagster.yaml").read_text())
    document.pop("storage", None)
    document["run_launcher"].setdefault("config", {}).update(config)
    (folder / "dagster.yaml").write_text(yaml.safe_dump(document))
    with dg.DagsterInstance.from_config(str(folder)) as instance:

        def launch(launcher: str) -> dg.DagsterRun:
            origin = dg.reconstructable(compact_partition).get_python_origin()
            run = instance.create_run_for_job(
                compact_partition,
                job_code_origin=origin,
                tags=compaction_tags(Settings(run_launcher=launcher), stream_feed(), ESTIMATE),
            )
            instance.run_launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
            found = instance.get_run_by_id(run.run_id)
            assert found is not None
            return found

        assert type(instance.run_coordinator).__name__ == "QueuedRunCoordinator"
        assert instance.get_concurrency_config().pool_config.pool_granularity.value == "run"
        yield launch


@contextmanager
def recording(answers: dict[tuple[str, str], object]) -> Iterator[tuple[str, list[tuple[str, str, Any]]]]:
    """A server that notes what it is asked for, and answers by the method and the end of the path."""
    asked: list[tuple[str, str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            asked.append((self.command, path, json.loads(body) if body else None))
            found = [value for (method, end), value in answers.items() if method == self.command and path.endswith(end)]
            text = json.dumps(found[0] if found else {}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = answer  # noqa: N815  the library's names

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def test_kubernetes_is_asked_for_a_job_with_the_runs_cores_and_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("DATALAKE_IMAGE", "registry.example/datalake:1")
    with recording({}) as (address, asked):
        cluster = {"name": "c", "cluster": {"server": f"http://{address}"}}
        context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
        kubeconfig = {"clusters": [cluster], "contexts": [context], "users": [{"name": "u", "user": {}}]}
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump({"current-context": "x", **kubeconfig}))
        reached = {"load_incluster_config": False, "kubeconfig_file": str(tmp_path / "kubeconfig")}
        with launching(tmp_path, "kubernetes", **reached) as launch:
            launch("kubernetes")

    ((_, path, job),) = [each for each in asked if each[0] == "POST"]
    assert path == "/apis/batch/v1/namespaces/dagster/jobs"
    assert job["spec"]["ttlSecondsAfterFinished"] == 3600
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/datalake:1"
    assert container["resources"] == {
        "requests": {"cpu": "2000m", "memory": "912Mi"},
        "limits": {"memory": "1368Mi"},
    }
    assert {"name": "temporary", "mountPath": "/tmp"} in container["volumeMounts"]
    assert [each["configMapRef"]["name"] for each in container["envFrom"] if "configMapRef" in each] == ["datalake"]


def test_docker_is_asked_for_a_container_that_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setenv("DATALAKE_IMAGE", "registry.example/datalake:1")
    for name in ("DATALAKE_LAKE", "DAGSTER_HOME", "AWS_REGION"):
        monkeypatch.setenv(name, "x")
    made = {"Id": "c1", "Name": "n", "State": {}, "Config": {}}
    answers = {("GET", "/version"): {"ApiVersion": "1.44"}, ("POST", "/create"): made, ("GET", "/c1/json"): made}
    with recording(answers) as (address, asked), launching(tmp_path, "docker") as launch:
        monkeypatch.setenv("DOCKER_HOST", f"tcp://{address}")
        run = launch("")

    ((_, _, container),) = [each for each in asked if each[1].endswith("/containers/create")]
    host = container["HostConfig"]
    assert (host["Memory"], host["NanoCpus"], host["AutoRemove"]) == (2 << 30, 2 * 10**9, True)
    assert "DATALAKE_LAKE=x" in container["Env"]
    assert run.tags["docker/container_id"] == "c1"
    assert asked[-1][:2] == ("POST", "/v1.44/containers/c1/start")


@pytest.fixture
def aws():
    """AWS, as moto has it in this process."""
    from moto import mock_aws  # noqa: PLC0415  half a second

    with mock_aws():
        yield


def test_ecs_is_asked_for_a_task_of_the_runs_size(aws, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    ecs = boto3.client("ecs")
    ecs.create_cluster(clusterName="lake")
    resources = template()
    definition = resources["Task"]["Properties"]
    container = {"name": definition["ContainerDefinitions"][0]["Name"], "image": "datalake:1", "memory": 512}
    registered = ecs.register_task_definition(
        family=definition["Family"],
        containerDefinitions=[container],
        requiresCompatibilities=["FARGATE"],
        networkMode="awsvpc",
        cpu=definition["Cpu"],
        memory=definition["Memory"],
    )["taskDefinition"]["taskDefinitionArn"]
    monkeypatch.setenv("DATALAKE_RUN_TASK", registered)
    subnet = boto3.client("ec2").describe_subnets()["Subnets"][0]["SubnetId"]
    network = {"subnets": [subnet], "securityGroups": ["sg-1"]}
    where = {
        "cluster": "lake",
        "launchType": "FARGATE",
        "networkConfiguration": {"awsvpcConfiguration": network},
    }
    with launching(tmp_path, "ecs", use_current_ecs_task_config=False, run_task_kwargs=where) as launch:
        run = launch("ecs")

    (task,) = ecs.describe_tasks(cluster="lake", tasks=[run.tags["ecs/task_arn"]])["tasks"]
    assert task["taskDefinitionArn"] == registered
    assert (task["overrides"]["cpu"], task["overrides"]["memory"]) == ("2048", "4096")
    (override,) = task["overrides"]["containerOverrides"]
    assert (override["name"], override["command"][:3]) == ("run", ["dagster", "api", "execute_run"])


def test_celery_is_told_of_a_run_on_its_queue(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_CELERY_BROKER", "memory://")
    monkeypatch.setenv("DAGSTER_CELERY_BACKEND", "cache+memory://")
    with launching(tmp_path, "celery") as launch:
        run = launch("celery")
    assert run.tags["dagster-celery/task_id"]
    assert int(run.tags["dagster/max_runtime"]) > 8 * 3600


def test_helm_values_are_some_that_the_launcher_takes():
    from dagster_k8s.job import USER_DEFINED_K8S_JOB_CONFIG_SCHEMA, DagsterK8sJobConfig  # noqa: PLC0415  a second

    values = yaml.safe_load((RUNS / "kubernetes" / "values.yaml").read_text())
    assert values["runLauncher"]["type"] == "K8sRunLauncher"
    given = values["runLauncher"]["config"]["k8sRunLauncher"]
    # the chart writes these into dagster.yaml in snake case
    launcher = DagsterK8sJobConfig.config_type_run_launcher()
    assert {_snake(name) for name in given} <= set(launcher)
    assert {_snake(name) for name in given["runK8sConfig"]} <= set(USER_DEFINED_K8S_JOB_CONFIG_SCHEMA.fields)
    ours = yaml.safe_load((RUNS / "kubernetes" / "dagster.yaml").read_text())
    assert given["resources"] == ours["run_launcher"]["config"]["run_k8s_config"]["container_config"]["resources"]


def test_worker_of_celery_has_a_command_that_there_is():
    from celery.bin.celery import celery  # noqa: PLC0415  half a second

    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str
    unit.read_string((RUNS / "celery" / "datalake-worker.service").read_text())
    words = shlex.split(unit["Service"]["ExecStart"])
    assert (Path(words[0]).name, words[1:4]) == ("celery", ["-A", "dagster_celery.app", "worker"])
    shown = CliRunner().invoke(celery, ["worker", "--help"])
    assert shown.exit_code == 0
    for option in [word for word in words[4:] if word.startswith("-")]:
        assert option in shown.output


@pytest.mark.slow
def test_template_is_one_that_cloudformation_takes():
    assert complaints(RUNS / "ecs" / "task.yaml") == []


def template() -> dict[str, Any]:
    resources: dict[str, Any] = template_of(RUNS / "ecs" / "task.yaml")["Resources"]
    return resources


def _snake(name: str) -> str:
    return "".join(f"_{each.lower()}" if each.isupper() else each for each in name)
