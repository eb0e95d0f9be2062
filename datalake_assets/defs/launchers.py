"""What a run launcher is told of a run: the cores and the memory that its work is estimated to take, as tags.

Launchers start a container or a task for each run, and read from the run's tags how large that should be. Which
launcher there is, the installation says (`Settings.run_launcher`): a code location cannot ask Dagster for it where the
launcher's package is not installed beside the location, as on Kubernetes. Another launcher is one function here.
"""

import json
from collections.abc import Callable, Mapping
from math import ceil

from datalake_assets.core.compaction.run_groups import RunEstimate
from datalake_assets.feed import Feed
from datalake_assets.policies import MIB, RunPolicy
from datalake_assets.settings import Settings

__all__ = ["LAUNCHERS", "RunSize", "compaction_tags", "export_tags", "fargate_size"]

#: Cores and bytes of memory of a run.
RunSize = tuple[float, int]
#: On runs of compactions: what the sensor expects of them.
BYTES_TAG, SECONDS_TAG = "datalake/bytes_to_merge", "datalake/estimated_s"
#: The sensor asks for what is left of a run that failed, in smaller runs: Dagster does not start it again as it was.
#: And exports that wait in the queue go before: a backlog takes hours, and nobody waits for its end.
_AS_ASKED = {"dagster/max_retries": "0", "dagster/priority": "-1"}
#: Seconds after which Dagster ends a run whose worker is gone without anybody's having noticed, besides its work: it
#: may have waited in its process for the pool as long as the nightly maintenance goes on.
_LONGEST_WAIT_S = 8 * 3600
#: How many times longer than estimated its work may take.
_PATIENCE = 20
#: A container is ended at this many times the memory that a run is expected to take.
_MEMORY_LIMIT = 1.5
# AWS Fargate, task sizes: CPU units, and the MiB of memory that may go with them: from, to, in steps of (ECS Developer
# Guide, "Task CPU and memory"); 256 units may also have 512 MiB
_FARGATE = (
    (256, 512, 2048, 512),
    (512, 1024, 4096, 1024),
    (1024, 2048, 8192, 1024),
    (2048, 4096, 16384, 1024),
    (4096, 8192, 30720, 1024),
    (8192, 16384, 61440, 4096),
    (16384, 32768, 122880, 8192),
)


def compaction_tags(settings: Settings, feed: Feed, estimate: RunEstimate) -> dict[str, str]:
    """The tags of a run that compacts partitions of a feed.

    Args:
        settings: The installation's; they name the launcher.
        feed: The feed, whose own figures and tags go before.
        estimate: What the run is expected to take.
    """
    expected = {BYTES_TAG: str(estimate.size_bytes), SECONDS_TAG: f"{ceil(estimate.work_s)}"}
    ends = {"dagster/max_runtime": str(_LONGEST_WAIT_S + ceil(_PATIENCE * estimate.work_s))}
    return {
        **expected,
        **_AS_ASKED,
        **(ends if settings.run_launcher else {}),
        **_sized(settings, feed.runs, (estimate.cores, estimate.memory_bytes)),
    }


def export_tags(settings: Settings, feed: Feed) -> dict[str, str]:
    """The tags of a run that exports a feed; nobody knows before the source was read what it takes, but the feed."""
    if feed.runs.cores is None and feed.runs.memory_mb is None:
        return dict(feed.runs.tags)
    return _sized(settings, feed.runs, None)


def fargate_size(cores: float, memory_bytes: int) -> tuple[int, int]:
    """The smallest task of AWS Fargate that has so much; the largest of all if none has.

    Returns:
        CPU units, of which a core has 1,024, and MiB.
    """
    wanted = ceil(memory_bytes / MIB)
    for units, least, most, step in _FARGATE:
        if units >= cores * 1024 and wanted <= most:
            size = least + max(0, -(-(wanted - least) // step)) * step
            # 1.5 GiB is no size with a quarter of a core
            return units, 2048 if (units, size) == (256, 1536) else size
    return _FARGATE[-1][0], _FARGATE[-1][2]


def _sized(settings: Settings, runs: RunPolicy, size: RunSize | None) -> dict[str, str]:
    cores = runs.cores if runs.cores is not None else size[0] if size else None
    memory_bytes = runs.memory_mb * MIB if runs.memory_mb is not None else size[1] if size else None
    made = LAUNCHERS[settings.run_launcher](cores, memory_bytes)
    return {**made, **runs.tags}


def _kubernetes(cores: float | None, memory_bytes: int | None) -> Mapping[str, str]:
    """Of `K8sRunLauncher`: the container's resources (dagster-k8s, "Per-job configuration")."""
    requests, limits = {}, {}
    if cores is not None:
        requests["cpu"] = f"{ceil(cores * 1000)}m"
    if memory_bytes is not None:
        requests["memory"] = f"{ceil(memory_bytes / MIB)}Mi"
        limits["memory"] = f"{ceil(_MEMORY_LIMIT * memory_bytes / MIB)}Mi"
    resources = {"requests": requests, **({"limits": limits} if limits else {})}
    return {"dagster-k8s/config": json.dumps({"container_config": {"resources": resources}}, sort_keys=True)}


def _ecs(cores: float | None, memory_bytes: int | None) -> Mapping[str, str]:
    """Of `EcsRunLauncher`: the task's size (dagster-aws, "Customizing CPU and memory"); one that Fargate has."""
    units, memory_mb = fargate_size(cores or 0, ceil(_MEMORY_LIMIT * (memory_bytes or 0)))
    return {"ecs/cpu": str(units), "ecs/memory": str(memory_mb)}


def _nothing(cores: float | None, memory_bytes: int | None) -> Mapping[str, str]:  # noqa: ARG001  as the others
    """Of launchers that give each run what they give all: a worker of Celery has a size, and a run picks a queue."""
    return {}


#: What each launcher reads of a run's size, by its name in the settings.
LAUNCHERS: Mapping[str, Callable[[float | None, int | None], Mapping[str, str]]] = {
    "": _nothing,
    "kubernetes": _kubernetes,
    "ecs": _ecs,
    "celery": _nothing,
}
