"""The public pieces are these, load little, work as documented, and refuse what cannot be watched."""

import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

import datalake_assets.defs
from datalake_assets.defs import build_compaction_sensor, build_file_size_checks, build_freshness_checks
from datalake_assets.errors import ConfigError
from datalake_assets.policies import Limits
from datalake_assets_tests.defs.projects.project import EXPECTED_WARNINGS

pytestmark = EXPECTED_WARNINGS


def test_public_names_are_these_and_no_others():
    assert datalake_assets.defs.__all__ == [
        "LakeDuckDBResource",
        "LakeResource",
        "ParquetLakeIOManager",
        "S3LakeResource",
        "build_compaction_sensor",
        "build_file_size_checks",
        "build_freshness_checks",
    ]
    for name in datalake_assets.defs.__all__:
        assert getattr(datalake_assets.defs, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = datalake_assets.defs.nothing


def test_public_names_load_nothing_that_definitions_do_not_need():
    heavy = ("boto3", "dagster_aws", "duckdb", "httpx", "jinja2", "matplotlib", "obstore", "pandas", "polars")
    bringing = {"LakeDuckDBResource", "S3LakeResource"}  # DuckDB, and dagster-aws with boto3: they are it
    names = ", ".join(name for name in datalake_assets.defs.__all__ if name not in bringing)
    script = f"import sys; from datalake_assets.defs import {names}; print([m for m in {heavy} if m in sys.modules])"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


def test_code_of_the_how_to_runs_as_it_stands(tmp_path, project):
    page = Path(__file__).parents[3] / "docs" / "how-to" / "use-it-in-your-own-project.md"
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    whole, on_s3, asked, scheduled = blocks
    told: dict[str, object] = {}

    exec(whole.replace("s3://bucket", str(tmp_path)), told)  # noqa: S102  our own documentation
    told["freshness_checks"] = build_freshness_checks([told["orders"]], lake=told["lake"], max_commit_age=timedelta(1))
    exec(asked, told)  # noqa: S102  likewise
    exec(scheduled, told)  # noqa: S102  likewise

    exec(on_s3, dict(told))  # noqa: S102  likewise
    definitions = dg.Definitions.merge(told["defs"], dg.Definitions(schedules=[told["schedule"]]))
    assert definitions.resolve_job_def("compact_partition").name == "compact_partition"
    assert project.lake.open().uri == told["lake"].open().uri
    job = definitions.resolve_job_def("freshness")
    assert job.execute_in_process(instance=project.instance).get_asset_check_evaluations()[0].passed is False


def test_definitions_bring_the_job_of_the_sensor_along(project):
    assert project.definitions().resolve_job_def("compact_partition").name == "compact_partition"
    assert not project.lake.open().registry.list().feeds, "loading definitions writes nothing"


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda p: build_freshness_checks([p.orders], lake=p.lake), "give an age, like max_commit_age"),
        (lambda p: build_file_size_checks(["orders"], lake=p.lake), "'orders' is no asset; give what @dg.asset or"),
        (
            lambda p: build_freshness_checks([p.users], lake=p.lake, max_event_age=timedelta(1)),
            "asset 'users': its rows have no times, so max_event_age cannot be judged; give max_commit_age instead",
        ),
        (
            lambda p: build_file_size_checks([p.users], lake=p.lake, small_files=Limits(warn=9, error=8)),
            "asset 'users': checks.small_files: warn, error: it fails before it warns",
        ),
        (
            lambda p: build_freshness_checks([p.exports], lake=p.lake, max_event_age=timedelta(1)),
            "or its metadata 'datalake/time_column'",
        ),
        (
            lambda p: build_compaction_sensor([dg.AssetSpec(["a", "b"]), dg.AssetSpec("a__b")], lake=p.lake),
            "assets 'a/b' and 'a__b' would both be feed 'a__b'; give one of them another name",
        ),
        (
            lambda p: build_file_size_checks(
                [dg.AssetSpec("a", partitions_def=dg.StaticPartitionsDefinition(["x"]))], lake=p.lake
            ),
            "asset 'a': its partitions are not those of a stream",
        ),
        (
            lambda p: build_file_size_checks([dg.AssetSpec("a", metadata={"dagster/uri": "gs://x/y"})], lake=p.lake),
            "'gs://x/y' cannot be adopted: give a local folder, or s3://bucket/prefix",
        ),
    ],
)
def test_what_cannot_be_watched_is_told_when_definitions_load(project, build, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        build(project)
