"""Runs that a command starts itself, as the web UI's own: with the code location that they belong to.

The public API (`JobDefinition.execute_in_process`, `execute_job`) creates runs that belong to no code location. The UI
cannot run those again, and no run-failure sensor sees them. So this module, and no other, reaches below `dagster`;
`test_upstream_characterization.py` pins what it reaches for.
"""

import uuid
from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob  # noqa: TID251  see above
from dagster._core.execution.api import execute_run  # noqa: TID251  see above
from dagster._core.remote_origin import (  # noqa: TID251  see above
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)

from datalake_assets.defs.runs.process_tags import process_tags

__all__ = ["LOCATION_NAME", "run_job_here"]

#: The name of our code location in ``workspace.yaml``.
LOCATION_NAME = "datalake_assets"
#: How Dagster calls the one repository of a `Definitions` object.
_REPOSITORY_NAME = "__repository__"


def run_job_here(
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    *,
    asset_key: dg.AssetKey,
    run_config: Mapping[str, Any],
    tags: Mapping[str, str],
) -> dg.JobExecutionResult:
    """Materializes one asset of a job in this process, and tags the run with it."""
    run_id = str(uuid.uuid4())
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(LOCATION_NAME), _REPOSITORY_NAME)
    run = instance.create_run_for_job(
        job_def=job,
        run_config=run_config,
        run_id=run_id,
        tags={**process_tags(run_id), **tags},
        asset_selection=frozenset([asset_key]),
        remote_job_origin=RemoteJobOrigin(repository, job.name),
    )
    return execute_run(InMemoryJob(job), run, instance)
