"""What launchers read of the tags that runs carry: held against the launchers themselves."""

from __future__ import annotations

import itertools

import dagster as dg
import pytest
from dagster_aws.ecs import EcsRunLauncher
from hypothesis import given
from hypothesis import strategies as st

from datalake_assets.core.compaction.run_groups import RunEstimate
from datalake_assets.defs.launchers import LAUNCHERS, compaction_tags, export_tags, fargate_size
from datalake_assets.errors import InvalidFeed
from datalake_assets.settings import Settings
from datalake_assets_tests.lake.feeds import stream_feed

MIB = 1 << 20
ESTIMATE = RunEstimate(size_bytes=8 << 30, work_s=118.2, cores=2, memory_bytes=912 * MIB)
#: All task sizes of AWS Fargate: CPU units, and GiB of memory (ECS Developer Guide, "Task CPU and memory").
TASKS = [
    *((256, gib) for gib in (0.5, 1, 2)),
    *((512, gib) for gib in range(1, 5)),
    *((1024, gib) for gib in range(2, 9)),
    *((2048, gib) for gib in range(4, 17)),
    *((4096, gib) for gib in range(8, 31)),
    *((8192, gib) for gib in range(16, 61, 4)),
    *((16384, gib) for gib in range(32, 121, 8)),
]


def tags(launcher: str, **runs: object) -> dict[str, str]:
    return compaction_tags(Settings(run_launcher=launcher), stream_feed(runs=runs), ESTIMATE)


def resources(found: dict[str, str]) -> dict[str, dict[str, str]]:
    """The resources of the container that Kubernetes is asked for, by the launcher's own code."""
    from dagster_k8s.job import (  # noqa: PLC0415  a second
        DagsterK8sJobConfig,
        construct_dagster_k8s_job,
        get_user_defined_k8s_config,
    )

    job = construct_dagster_k8s_job(
        DagsterK8sJobConfig(job_image="lake:1", dagster_home="/home"),
        args=["dagster", "api", "execute_run"],
        job_name="dagster-run-1",
        user_defined_k8s_config=get_user_defined_k8s_config(found),
    )
    (container,) = job.spec.template.spec.containers
    return {key: value for key, value in container.resources.to_dict().items() if value}


def test_without_a_launcher_a_run_says_what_is_expected_of_it_and_that_it_is_not_repeated_as_it_was():
    assert tags("") == {
        "datalake/bytes_to_merge": str(8 << 30),
        "datalake/estimated_s": "119",
        "dagster/max_retries": "0",
        "dagster/priority": "-1",
    }


def test_kubernetes_is_asked_for_the_cores_and_the_memory_of_the_estimate():
    assert resources(tags("kubernetes")) == {
        "requests": {"cpu": "2000m", "memory": "912Mi"},
        "limits": {"memory": "1368Mi"},
    }
    assert resources(tags("kubernetes", cores=0.5, memory_mb=4096)) == {
        "requests": {"cpu": "500m", "memory": "4096Mi"},
        "limits": {"memory": "6144Mi"},
    }


def test_ecs_is_asked_for_a_size_that_it_has():
    run = dg.DagsterRun(job_name="compact_partition", tags=tags("ecs"))

    class Context:
        run_resources: dict[str, str] = {}  # noqa: RUF012  read only

    overrides = EcsRunLauncher.get_cpu_and_memory_overrides(None, Context(), run)
    assert overrides == {"cpu": "2048", "memory": "4096"}


@given(st.floats(0, 20), st.integers(0, 130 * 1024))
def test_size_on_fargate_is_the_smallest_that_has_so_much(cores, memory_mb):
    fitting = [(units, gib * 1024) for units, gib in TASKS if units >= cores * 1024 and gib * 1024 >= memory_mb]
    assert fargate_size(cores, memory_mb * MIB) == min(fitting, default=(16384, 120 * 1024))


def test_a_feeds_own_tags_go_before_those_that_are_made():
    mine = {"dagster-celery/queue": "large", "dagster/max_retries": "2", "ecs/cpu": "4096"}
    for launcher in LAUNCHERS:
        assert mine.items() <= tags(launcher, tags=mine).items()
    assert "dagster/max_runtime" in tags("celery")


def test_exports_have_the_size_that_their_feed_says_and_none_that_nobody_knows():
    settings = Settings(run_launcher="kubernetes")
    assert export_tags(settings, stream_feed()) == {}
    assert export_tags(settings, stream_feed(runs={"tags": {"a": "b"}})) == {"a": "b"}
    sized = export_tags(settings, stream_feed(runs={"memory_mb": 2048}))
    assert resources(sized) == {"requests": {"memory": "2048Mi"}, "limits": {"memory": "3072Mi"}}


@pytest.mark.parametrize(
    ("runs", "reason"),
    [({"max_bytes": 0}, "max_bytes"), ({"cores": 0}, "cores"), ({"memory_mb": 1}, "memory_mb"), ({"x": 1}, "x")],
)
def test_figures_that_no_run_can_have_are_refused(runs, reason):
    with pytest.raises(InvalidFeed, match=f"runs.{reason}"):
        stream_feed(runs=runs)


def test_every_launcher_of_the_settings_is_known():
    values = Settings.model_fields["run_launcher"].annotation.__args__
    assert sorted(itertools.chain(values)) == sorted(LAUNCHERS)
