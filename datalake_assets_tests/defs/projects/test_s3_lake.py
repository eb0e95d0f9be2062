"""A project that has dagster-aws's S3Resource, and nothing in the environment: its lake is reached by that alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from dagster_aws.s3 import S3Resource

from datalake_assets.defs import LakeDuckDBResource, LakeResource, S3LakeResource
from datalake_assets.demo.s3_server import S3Server
from datalake_assets.errors import ConfigError, LakeUnavailable
from datalake_assets.settings import Settings
from datalake_assets_tests.defs.projects.project import EXPECTED_WARNINGS, SIZES, TODAY, Project, evaluations

pytestmark = [*EXPECTED_WARNINGS, pytest.mark.s3]


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials, no region and no server in the environment, nor in files, nor of a machine in a cloud."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "DATALAKE_"))]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def resource(server: S3Server, **fields: object) -> S3Resource:
    keys = {"aws_access_key_id": server.access_key, "aws_secret_access_key": server.secret_key}
    return S3Resource(endpoint_url=server.endpoint, region_name="us-east-1", **(keys | fields))


def lake_on(server: S3Server, s3: object) -> S3LakeResource:
    return S3LakeResource(settings=Settings(lake=f"s3://{server.bucket}/tests/{uuid.uuid4().hex}"), s3=s3)


def arrow(server: S3Server) -> pyarrow.fs.S3FileSystem:
    return pyarrow.fs.S3FileSystem(
        access_key=server.access_key,
        secret_key=server.secret_key,
        endpoint_override=server.endpoint,
        region="us-east-1",
    )


def test_lake_without_the_resource_is_not_reached(s3_server):
    settings = Settings(lake=f"s3://{s3_server.bucket}/x", s3_endpoint=s3_server.endpoint)
    with pytest.raises(LakeUnavailable, match="no S3 credentials were found"):
        _ = LakeResource(settings=settings).open().store


def test_every_client_of_a_project_reaches_the_lake_by_the_resource(s3_server, instance, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_PROJECT", s3_server.secret_key)
    lake = lake_on(s3_server, resource(s3_server, aws_secret_access_key=dg.EnvVar("SECRET_OF_THE_PROJECT")))
    folder = f"s3://{s3_server.bucket}/others/{uuid.uuid4().hex}/exports"
    for number in range(4):
        pq.write_table(pa.table({"id": [number]}), f"{folder[5:]}/{number}.parquet", filesystem=arrow(s3_server))
    project = Project(lake, instance, Path("/nowhere"))
    exports = dg.AssetSpec("exports", metadata={"dagster/uri": folder})
    project.made = (project.orders, project.users, exports)

    assert project.run(project.orders, partition_key=TODAY).success
    assert project.run(project.users).success
    assert project.tick() == [{"feed": "exports", "partitions": ["."]}]  # a folder beside the lake; no run gave it
    assert evaluations(project.evaluate(exports)) == {(name, None): True for name in SIZES}

    counts: dict[str, int] = {}

    @dg.asset
    def asked(duckdb: LakeDuckDBResource) -> None:
        with duckdb.get_connection() as connection:
            for name in ("orders", "users", "exports"):
                counts[name] = connection.execute(f"from {name} select count(*)").fetchone()[0]

    views = {"duckdb": LakeDuckDBResource(lake=lake)}
    assert dg.materialize([asked], resources=views, instance=instance).success
    assert counts == {"orders": 4, "users": 4, "exports": 4}
    opened = lake.open()
    tables = [opened.table(each) for each in opened.registry.list().feeds]
    assert [list(each.verify(deep=True)) for each in tables] == [[], [], []]


def test_resource_wins_over_the_environment(s3_server, monkeypatch):
    wrong = {"ACCESS_KEY_ID": "nobody", "SECRET_ACCESS_KEY": "wrong", "SESSION_TOKEN": "old", "REGION": "nowhere-1"}
    for name, value in {**wrong, "ENDPOINT_URL_S3": "http://127.0.0.1:1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    store = lake_on(s3_server, resource(s3_server)).open().store

    store.put("a", b"written by boto3")

    assert store.get("a")[0] == b"written by boto3", "read by obstore"
    assert store.filesystem().open_input_file(store.path("a")).read() == b"written by boto3", "read by Arrow"


def test_profile_of_the_resource_is_used_and_its_renewed_credentials_too(s3_server, tmp_path, monkeypatch):
    """A profile whose credentials come from a process and end within a minute: they are asked for again and again."""
    asked = tmp_path / "asked"
    script = tmp_path / "credentials.py"
    script.write_text(
        "import datetime, json\n"
        f"open({str(asked)!r}, 'a').write('x')\n"
        "end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=1)\n"
        f"keys = {{'AccessKeyId': {s3_server.access_key!r}, 'SecretAccessKey': {s3_server.secret_key!r}}}\n"
        "print(json.dumps(dict(keys, Version=1, Expiration=end.isoformat())))\n"
    )
    config = tmp_path / "config"
    config.write_text(f"[profile lake]\ncredential_process = {sys.executable} {script}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    s3 = S3Resource(endpoint_url=s3_server.endpoint, profile_name="lake")
    store = lake_on(s3_server, s3).open().store
    before = len(asked.read_text())

    store.put("a", b"x")
    assert store.get("a")[0] == store.filesystem().open_input_file(store.path("a")).read() == b"x"

    assert len(asked.read_text()) >= before + 3, "each client renews what is about to end"


def test_secret_is_in_no_run_no_event_and_no_message(s3_server, tmp_path):
    """Given by `EnvVar`, as dagster-aws says; what Dagster keeps of a run and of its resources lacks it."""
    folder, home = tmp_path / "project", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    (folder / "location.py").write_text(
        "import dagster as dg, pyarrow as pa\n"
        "from dagster_aws.s3 import S3Resource\n"
        "from datalake_assets.defs import ParquetLakeIOManager, S3LakeResource\n"
        "from datalake_assets.settings import Settings\n"
        "@dg.asset(io_manager_key='lake')\n"
        "def users() -> pa.Table: return pa.table({'id': [1, 2]})\n"
        f"s3 = S3Resource(endpoint_url={s3_server.endpoint!r}, aws_access_key_id={s3_server.access_key!r},\n"
        "    aws_secret_access_key=dg.EnvVar('SECRET_OF_THE_PROJECT'))\n"
        f"settings = Settings(lake='s3://{s3_server.bucket}/tests/{uuid.uuid4().hex}')\n"
        "lake = S3LakeResource(settings=settings, s3=s3)\n"
        "print(repr(lake), repr(lake.open()), repr(lake.open().store), repr(lake.open().store.s3))\n"
        "defs = dg.Definitions(assets=[users], resources={'lake': ParquetLakeIOManager(lake=lake), 's3': s3})\n"
    )
    command = [str(Path(sys.executable).with_name("dagster")), "asset", "materialize", "-f", "location.py"]
    environment = {**os.environ, "DAGSTER_HOME": str(home), "SECRET_OF_THE_PROJECT": s3_server.secret_key}
    done = subprocess.run(
        [*command, "--select", "users"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "S3Access" in done.stdout
    kept = [file for file in home.rglob("*") if file.is_file()]
    assert any(file.suffix == ".db" and b"ASSET_MATERIALIZATION" in file.read_bytes() for file in kept)
    secret = s3_server.secret_key.encode()
    assert [str(file) for file in kept if secret in file.read_bytes()] == []
    assert s3_server.secret_key not in done.stdout + done.stderr


class _OwnClients(S3Resource):
    def get_client(self) -> object:
        return super().get_client()


@pytest.mark.parametrize(
    ("s3", "told"),
    [
        (
            S3Resource(use_unsigned_session=True),
            "use_unsigned_session is set, and a lake is written by signed requests",
        ),
        (S3Resource(verify=False), "verify is False; name the authority's PEM file in AWS_CA_BUNDLE"),
        (S3Resource(use_ssl=False), "use_ssl is False; say so by the scheme of endpoint_url"),
        (S3Resource(aws_access_key_id="a"), "give the access key and the secret key, or none"),
        (S3Resource(aws_session_token="secret"), "give the access key and the secret key, or none"),
        (S3Resource.configure_at_launch(), "it is configured when a run is launched, and sensors have no run"),
        (_OwnClients(), "its class makes clients of its own; use S3Resource"),
    ],
)
def test_resource_that_the_lake_cannot_follow_is_refused(s3, told):
    lake = S3LakeResource(settings=Settings(lake="s3://bucket/x"), s3=s3)
    with pytest.raises(ConfigError, match=re.escape(told)):
        lake.open()


def test_profile_that_is_not_there_is_named(s3_server):
    lake = lake_on(s3_server, S3Resource(profile_name="nobody")).open()
    with pytest.raises(LakeUnavailable, match="check the profile 'nobody' and the endpoint"):
        _ = lake.store
