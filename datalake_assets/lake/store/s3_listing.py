"""Listings of a bucket, of which each answer is proven to be one, and whole, before a key of it counts.

Files that a listing does not name are taken for gone, and feeds for removed, so that an answer which is none must not
look like an empty one. S3 may answer 200 with an error in it (AWS S3 API reference, CopyObject; botocore looks for one
in all of S3's answers), and a gateway with a page of its own. obstore 0.12 takes both for a listing that names nothing,
and one that says it goes on, and not where, for one that ends. boto3 takes three times as long to read a page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode
from xml.etree import ElementTree as ET
from xml.parsers import expat

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import ClientError

from datalake_assets.errors import CorruptLake
from datalake_assets.lake.store.base import ObjectInfo

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from botocore.httpsession import URLLib3Session

__all__ = ["S3Listing"]

_OK, _SERVER_ERROR = 200, 500
_ROOT = "ListBucketResult"
_NO_NAMES = {"", ".", ".."}
#: What a server says in XML of a key that XML has no words for.
_NO_CHARACTER = expat.errors.codes[expat.errors.XML_ERROR_BAD_CHAR_REF]


class S3Listing:
    """ListObjectsV2 of one bucket; safe for threads.

    Args:
        url: The bucket's.
        root: What full keys begin with that the keys given here do not; empty, or a folder with its slash.
        region: That requests are signed for.
        credentials: As whom.
        session: Sends the requests.
        counted: Called before each.
    """

    def __init__(
        self,
        url: str,
        root: str,
        *,
        region: str,
        credentials: Credentials,
        session: URLLib3Session,
        counted: Callable[[], object],
    ) -> None:
        self._url, self._root, self._region, self._credentials = url, root, region, credentials
        self._session, self._counted = session, counted

    def page(self, prefix: str, *, after: str = "", delimiter: str = "") -> tuple[Sequence[ObjectInfo], str]:
        """One request: the objects whose keys begin so, and where the next page begins; empty after the last.

        A "folder marker" of the AWS console is an object, of no size; that of the root is none.

        Args:
            prefix: Of keys below the root; it need not end with a name.
            after: Where this page begins, as the page before said.
            delimiter: Keys that have it after the prefix are left out.

        Raises:
            ClientError: The store refused or failed, whatever status it said so with.
            BotoCoreError: No whole answer came.
            CorruptLake: There are keys that cannot be told.
        """
        asked = {
            "list-type": "2",
            "prefix": f"{self._root}{prefix}",
            "continuation-token": after,
            "delimiter": delimiter,
        }
        query = urlencode({name: asked[name] for name in sorted(asked) if asked[name]}, quote_via=quote, safe="-_.~")
        request = AWSRequest("GET", f"{self._url}?{query}")
        S3SigV4Auth(self._credentials.get_frozen_credentials(), "s3", self._region).add_auth(request)
        self._counted()
        answer = self._session.send(request.prepare())
        if answer.status_code != _OK:
            raise _failure(_parsed(answer.content), answer.status_code)
        found, following = _page(_parsed(answer.content, where=self._where(prefix)), after)
        return [info for entry in found if (info := self._object(entry)) is not None], following

    def _object(self, entry: ET.Element) -> ObjectInfo | None:
        said = {each.tag.rpartition("}")[2]: each.text or "" for each in entry}
        try:
            key, size, etag = (
                said["Key"][len(self._root) :].removesuffix("/"),
                int(said["Size"]),
                said["ETag"].strip('"'),
            )
            modified = datetime.fromisoformat(said["LastModified"])
        except (KeyError, ValueError) as error:
            raise _failure(None, _SERVER_ERROR) from error
        if not key:
            return None
        if not _NO_NAMES.isdisjoint(key.split("/")):
            reason, cure = "an object below has an empty, '.' or '..' name in its key", "delete or rename it"
            raise CorruptLake(self._where(key), reason, cure=cure)
        return ObjectInfo(key, size, etag, modified if modified.tzinfo is UTC else modified.astimezone(UTC))

    def _where(self, key: str) -> str:
        return f"s3://{self._url.rpartition('/')[2]}/{self._root}{key}"

    def close(self) -> None:
        """Closes its connections."""
        self._session.close()


def _page(root: ET.Element | None, after: str) -> tuple[Sequence[ET.Element], str]:
    """An answer's entries, and where the next page begins."""
    if root is None or root.tag.rpartition("}")[2] != _ROOT:
        raise _failure(root, _SERVER_ERROR)
    space = root.tag.removesuffix(_ROOT)
    goes_on = root.findtext(f"{space}IsTruncated", "") == "true"
    following = root.findtext(f"{space}NextContinuationToken", "") if goes_on else ""
    if goes_on and following in {"", after}:
        raise _failure(None, _SERVER_ERROR)
    return root.findall(f"{space}Contents"), following


def _parsed(content: bytes, *, where: str = "") -> ET.Element | None:
    """An answer's document; None if it is none."""
    try:
        return ET.fromstring(content)  # noqa: S314  of the store that the lake trusts with its rows
    except ET.ParseError as error:
        if where and error.code == _NO_CHARACTER:
            cure = "delete or rename it"
            raise CorruptLake(where, "an object has a control character in its key", cure=cure) from error
        return None


def _failure(root: ET.Element | None, status: int) -> ClientError:
    """What an answer says that is no listing; one of success counts as a failure of the server."""
    code = root.findtext("{*}Code") if root is not None and root.tag.rpartition("}")[2] == "Error" else None
    said = {"Code": code or (str(status) if status != _SERVER_ERROR else ""), "Message": ""}
    answer: Any = {"Error": said, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "ListObjectsV2")
