"""A lake that is reached as dagster-aws reaches S3: by a project's own `S3Resource`, whatever the environment says."""

from typing import Any

import dagster as dg
from dagster_aws.s3 import S3Resource

from datalake_assets.defs.resources import Lake, LakeResource
from datalake_assets.errors import ConfigError
from datalake_assets.lake.store.s3_access import S3Access

__all__ = ["S3LakeResource"]


class S3LakeResource(LakeResource):
    """The lake of a project that has dagster-aws's `S3Resource`, with the credentials, region and server of that.

    It stands wherever a `LakeResource` does. Folders on S3 that the lake has adopted are reached in the same way. What
    the resource leaves open comes by the AWS conventions, its server by ``settings`` before that. Its ``max_attempts``
    does not count: what may be repeated without writing twice is the lake's to know.

    Attributes:
        s3: The resource. What it shows of its fields, in the UI too, is up to it: give secrets as `dg.EnvVar`.
    """

    s3: dg.ResourceDependency[S3Resource]

    def _connect(self) -> Lake:
        settings = super()._connect().settings
        return Lake(settings, s3=_access(self.s3, endpoint=settings.s3_endpoint))


def _access(resource: Any, *, endpoint: str | None) -> S3Access:
    """How a resource reaches S3.

    Raises:
        ConfigError: It does so in a way that not all clients of a lake can.
    """
    if not isinstance(resource, S3Resource):
        raise _refused("it is configured when a run is launched, and sensors have no run; give its fields in the code")
    if type(resource).get_client is not S3Resource.get_client:
        raise _refused("its class makes clients of its own; use S3Resource, with a profile for a role to be assumed")
    s3 = resource.process_config_and_initialize()  # a sensor's is not initialized: its EnvVars have no values yet
    if s3.use_unsigned_session:
        raise _refused("use_unsigned_session is set, and a lake is written by signed requests; leave it out")
    if s3.verify is False:
        raise _refused("verify is False; name the authority's PEM file in AWS_CA_BUNDLE instead")
    if not s3.use_ssl and not (s3.endpoint_url or endpoint):
        raise _refused("use_ssl is False; say so by the scheme of endpoint_url instead")
    return S3Access(
        endpoint=s3.endpoint_url or endpoint,
        region=s3.region_name,
        profile=s3.profile_name,
        access_key=s3.aws_access_key_id,
        secret_key=s3.aws_secret_access_key,
        session_token=s3.aws_session_token,
    )


def _refused(reason: str) -> ConfigError:
    return ConfigError(f"the lake cannot be reached by this S3Resource: {reason}")
