"""OpenSearch, and Elasticsearch by the same requests, as a store of documents."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
from opensearchpy import OpenSearch, Urllib3HttpConnection, exceptions, helpers

from datalake_assets.errors import ConfigError, SourceRefused, SourceUnavailable
from datalake_assets.exchanges import TIMES_SILENT, bounded, tell_connections
from datalake_assets.feed import Feed
from datalake_assets.lake.store.base import Store
from datalake_assets.network import route_to
from datalake_assets.retrying import attempts
from datalake_assets.sinks.base import PARTITION_FIELD, Document, DocumentStore, Refusal, StoredId
from datalake_assets.sinks.opensearch.index_template import mapping, template
from datalake_assets.sinks.opensearch.opensearch_model import OpenSearchSettings, OpenSearchSink

__all__ = ["OpenSearchStore", "connect"]

logger = logging.getLogger(__name__)
#: The client logs each answer that is an error; some are expected, and of the others the errors tell.
logging.getLogger("opensearch").addHandler(logging.NullHandler())

_T = TypeVar("_T")
#: What a server says when it has too much to do, or its shards are not there for now.
_BUSY = frozenset({408, 429, 500, 502, 503, 504})
#: What it says of a request that is too large for it.
_TOO_LARGE = 413
_GONE, _CONFLICT = 404, 409
#: Ids of one page, when a partition's documents are looked through.
_PAGE = 5_000
#: Characters of a server's words that are kept.
_REASON = 500
#: What it says of each document where nothing can be written: an index that is gone, closed or blocked, missing rights.
_OF_INDEX = frozenset({401, 403, _GONE})
_OF_INDEX_KINDS = frozenset({"cluster_block_exception", "index_closed_exception", "index_not_found_exception"})
_UNBLOCK = (
    "grant the right to write, or open the index; what was not sent stays due, and is sent with the next delivery"
)
_LATER = "what was not sent stays due; it is sent with the next delivery"


class _Connection(Urllib3HttpConnection):
    """A server of a cluster, whose answers have an end."""

    def perform_request(self, *arguments: Any, **options: Any) -> Any:
        """As the client has it."""
        tell_connections()
        try:
            with bounded(TIMES_SILENT * self.timeout):
                return super().perform_request(*arguments, **options)
        except TimeoutError as error:
            raise exceptions.ConnectionTimeout("TIMEOUT", str(error), error) from error


class OpenSearchStore:
    """The indices of one feed; implements `DocumentStore`.

    Args:
        lake: URI of the lake, which an index template names, so that no two lakes fill the same indices.
        feed: The feed.
        sink: What it says of the sink.
        settings: Where the cluster is.
        client: Talks to it.
    """

    def __init__(
        self, lake: str, feed: Feed, sink: OpenSearchSink, settings: OpenSearchSettings, client: OpenSearch
    ) -> None:
        self._lake, self._feed, self._sink, self._client = lake, feed, sink, client
        self._retry_s = settings.opensearch_retry_s
        self._base = f"{sink.prefix}{feed.name}"
        self._properties: Mapping[str, Any] = {}
        self._there: set[str] = set()
        self.where = f"opensearch at {urlsplit(_urls(settings)[0]).hostname}, {self._base}"

    def prepare(self, schema: pa.Schema) -> None:
        """Implements `DocumentStore`: the index template, and of ``rollover`` the first index."""
        self._properties = mapping(schema, text=self._sink.text)
        self._there.clear()
        owner = {"lake": self._lake, "feed": self._feed.name, "sink": self._sink.label}
        body = template(self._base, self._sink, self._properties, owner=owner)
        self._refuse_others(owner)
        self._asked(lambda: self._client.indices.put_index_template(name=self._base, body=body))
        if self._sink.by == "rollover":
            self._begin_alias()

    def _refuse_others(self, owner: Mapping[str, str]) -> None:
        found = self._asked(lambda: self._client.indices.get_index_template(name=self._base), missing={})
        for each in found.get("index_templates", ()):
            theirs = (each.get("index_template", {}).get("_meta") or {}).get("datalake")
            if theirs is not None and theirs != owner:
                reason = f"its indices are filled from {theirs.get('lake')}, feed {theirs.get('feed')!r}"
                raise SourceRefused(
                    self.where, reason, cure="give the sink another prefix, or remove the index template"
                )

    def _begin_alias(self) -> None:
        if self._asked(lambda: self._client.indices.exists_alias(name=self._base)):
            return
        body = {"aliases": {self._base: {"is_write_index": True}}}
        self._create(f"{self._base}-000001", body)

    def _create(self, index: str, body: Mapping[str, Any]) -> None:
        """Makes an index, unless it is there."""
        try:
            self._asked(lambda: self._client.indices.create(index=index, body=dict(body)))
        except _Refused as refused:
            if refused.kind != "resource_already_exists_exception":
                raise

    def target(self, partition: str) -> str:
        """Implements `DocumentStore`: the name of an index, never of an alias."""
        if self._sink.by == "rollover":
            found = self._asked(lambda: self._client.indices.get_alias(name=self._base))
            return str(max(found, key=lambda name: (_is_written(found[name], self._base), name)))
        index = f"{self._base}-{partition.lower()}" if self._sink.by == "partition" else f"{self._base}-all"
        self._ensure(index)
        return index

    def _ensure(self, index: str) -> None:
        """Makes an index with all columns, or gives one that is there those that it lacks."""
        if index in self._there:
            return
        if self._asked(lambda: self._client.indices.exists(index=index)):
            body = {"properties": dict(self._properties)}
            self._asked(lambda: self._client.indices.put_mapping(index=index, body=body))
        else:
            self._create(index, {})
        self._there.add(index)

    def write(self, target: str, documents: Iterable[Document]) -> Iterator[Refusal]:
        """Implements `DocumentStore`: by bulk requests, each again until it is answered, and what of it was put off."""
        self._ensure(target)
        for batch in _batches(documents, rows=self._sink.batch_rows, size=self._sink.batch_mb << 20):
            yield from self._written(target, batch)

    def _written(self, target: str, batch: list[Document]) -> Iterator[Refusal]:
        left = batch
        refused: list[Refusal] = []

        def send() -> None:
            nonlocal left
            items = self._bulk(target, left)
            later: list[Document] = []
            for document, item in zip(left, items, strict=True):
                status, error = int(item.get("status", 500)), item.get("error")
                if error is None:
                    continue
                if status in _BUSY:
                    later.append(document)
                elif _is_of_index(status, error):
                    raise SourceRefused(self.where, f"{target}: {_reason(error)}", cure=_UNBLOCK)
                else:
                    refused.append(Refusal(document, _reason(error)))
            left = later
            if later:
                reason = f"it puts off {len(later):,} of {len(items):,} documents (status 429 or 503)"
                raise SourceUnavailable(self.where, reason, cure=_LATER)

        try:
            self._again(send)
        except _TooLarge as error:
            if len(batch) == 1:
                refused = [Refusal(batch[0], str(error))]
            else:
                half = len(batch) // 2
                yield from self._written(target, batch[:half])
                yield from self._written(target, batch[half:])
                return
        yield from refused

    def _bulk(self, target: str, documents: list[Document]) -> list[Mapping[str, Any]]:
        """One request; what became of each document."""
        lines: list[bytes] = []
        for each in documents:
            lines += [f'{{"index":{{"_id":"{each.id}"}}}}'.encode(), each.body]
        body = b"\n".join(lines) + b"\n"
        answer = self._once(lambda: self._client.bulk(index=target, body=body))
        items = [next(iter(item.values())) for item in answer.get("items", ())]
        if len(items) != len(documents):
            raise SourceUnavailable(self.where, f"it answers for {len(items):,} of {len(documents):,} documents")
        return items

    def stored(self, partition: str) -> Iterator[StoredId]:
        """Implements `DocumentStore`."""
        query = {"query": {"term": {PARTITION_FIELD: partition}}, "_source": False, "seq_no_primary_term": True}
        pattern = f"{self._base}-*"
        self._asked(lambda: self._client.indices.refresh(index=pattern), missing=None)

        def found() -> list[StoredId]:
            hits = helpers.scan(self._client, index=pattern, query=query, size=_PAGE, raise_on_error=True)
            try:
                return [StoredId(hit["_index"], hit["_id"], _version(hit)) for hit in hits]
            except exceptions.NotFoundError as error:
                if error.error == "index_not_found_exception":
                    return []
                # the server has lost the search: what it has given so far is not all
                raise SourceUnavailable(self.where, "a search was lost midway", cure=_LATER) from error

        yield from self._asked(found)

    def remove(self, ids: Iterable[StoredId]) -> None:
        """Implements `DocumentStore`."""
        some: list[StoredId] = []
        for each in ids:
            some.append(each)
            if len(some) == _PAGE:
                self._removed(some)
                some = []
        if some:
            self._removed(some)

    def _removed(self, ids: list[StoredId]) -> None:
        def line(each: StoredId) -> dict[str, Any]:
            at: dict[str, Any] = {"_index": each.target, "_id": each.id}
            if each.version is not None:
                at |= {"if_seq_no": each.version[0], "if_primary_term": each.version[1]}
            return {"delete": at}

        def send() -> None:
            answer = self._once(lambda: self._client.bulk(body=[line(each) for each in ids]))
            items = answer.get("items", ())
            if len(items) != len(ids):
                raise SourceUnavailable(self.where, f"it answers for {len(items):,} of {len(ids):,} documents")
            statuses = {int(item["delete"].get("status", 500)) for item in items}
            if statuses & _BUSY:
                raise SourceUnavailable(self.where, "it puts off the removal of documents", cure=_LATER)
            wrong = {each for each in statuses if each >= 400} - {_GONE, _CONFLICT}  # noqa: PLR2004  HTTP's errors
            if wrong:
                raise SourceRefused(self.where, f"it does not remove documents: status {min(wrong)}")

        self._again(send)

    def tidy(self) -> None:
        """Implements `DocumentStore`: begins the next index of ``rollover`` if this one is full."""
        if self._sink.by != "rollover":
            return
        limits = self._sink.rollover
        conditions = {
            "max_docs": limits.max_docs,
            "max_age": f"{max(1, int(limits.max_age.total_seconds()))}s",
            "max_size": f"{limits.max_size_gb}gb",
        }
        body = {"conditions": conditions}
        found = self._asked(lambda: self._client.indices.rollover(alias=self._base, body=body))
        if found.get("rolled_over"):
            logger.info("%s: index %s follows %s", self.where, found.get("new_index"), found.get("old_index"))

    def close(self) -> None:
        """Implements `DocumentStore`."""
        self._client.close()

    def _asked(self, question: Callable[[], _T], **missing: Any) -> _T:
        """An answer, asked for until there is one or time is up; ``missing`` where it is 404."""
        try:
            return self._again(lambda: self._once(question))
        except _Refused as refused:
            if "missing" in missing and refused.status == _GONE:
                instead: _T = missing["missing"]
                return instead
            raise

    def _again(self, action: Callable[[], _T]) -> _T:
        for attempt in attempts(
            SourceUnavailable, attempts=None, timeout=self._retry_s, wait_initial=0.2, wait_max=10.0, wait_jitter=0.2
        ):
            with attempt:
                return action()
        raise AssertionError("the last attempt raises")

    def _once(self, question: Callable[[], _T]) -> _T:
        """An answer; the client's errors as ours."""
        try:
            return question()
        except exceptions.SSLError as error:
            reason = "its certificate is not trusted, or it speaks no TLS"
            raise SourceRefused(self.where, reason, cure="set DATALAKE_OPENSEARCH_CA_FILE") from error
        except (exceptions.ConnectionError, exceptions.SerializationError) as error:
            raise SourceUnavailable(self.where, _words(error), cure=_LATER) from error
        except exceptions.TransportError as error:
            status = error.status_code if isinstance(error.status_code, int) else 500
            if status == _TOO_LARGE:
                raise _TooLarge(self.where, "a document is larger than the server takes") from error
            if status in _BUSY:
                raise SourceUnavailable(self.where, f"status {status}", cure=_LATER) from error
            raise _Refused(self.where, status, str(error.error), _words(error)) from error
        except helpers.errors.ScanError as error:
            raise SourceUnavailable(self.where, _words(error), cure=_LATER) from error


class _TooLarge(SourceRefused):
    """A request that a server does not take for its size."""


class _Refused(SourceRefused):
    """A request that a server refuses: its status, and its name for the error."""

    def __init__(self, where: str, status: int, kind: str, words: str) -> None:
        self.status, self.kind = status, kind
        super().__init__(where, words, cure="correct the feed's sink, or DATALAKE_OPENSEARCH_* and the rights there")


def _words(error: Exception) -> str:
    """What a person can use of a client's error; never its request, which may have rows in it."""
    if isinstance(error, exceptions.ConnectionError):
        return f"{type(error).__name__}: it cannot be reached, or does not answer in time"
    if isinstance(error, exceptions.TransportError):
        return _line(f"status {error.status_code}: {error.error}")
    return type(error).__name__


def _is_of_index(status: int, error: Any) -> bool:
    """Whether any document would be refused for this: then it is no dead letter."""
    return status in _OF_INDEX or (isinstance(error, Mapping) and error.get("type") in _OF_INDEX_KINDS)


def _reason(error: Any) -> str:
    """Why a document is refused, with what caused it."""
    if not isinstance(error, Mapping):
        return _line(str(error))
    cause = error.get("caused_by") or {}
    parts = (error.get("type"), error.get("reason"), cause.get("reason") if isinstance(cause, Mapping) else None)
    return _line(": ".join(str(each) for each in parts if each))


def _line(text: str) -> str:
    return " ".join(text.split())[:_REASON]


def _version(hit: Mapping[str, Any]) -> tuple[int, int] | None:
    if "_seq_no" not in hit or "_primary_term" not in hit:
        return None
    return int(hit["_seq_no"]), int(hit["_primary_term"])


def _is_written(found: Mapping[str, Any], alias: str) -> bool:
    return bool(found.get("aliases", {}).get(alias, {}).get("is_write_index"))


def _batches(documents: Iterable[Document], *, rows: int, size: int) -> Iterator[list[Document]]:
    batch: list[Document] = []
    held = 0
    for each in documents:
        added = len(each.body) + len(each.id) + 30  # what stands around an id
        if batch and (len(batch) >= rows or held + added > size):
            yield batch
            batch, held = [], 0
        batch.append(each)
        held += added
    if batch:
        yield batch


def _urls(settings: OpenSearchSettings) -> list[str]:
    urls = [each.strip() for each in (settings.opensearch_url or "").split(",") if each.strip()]
    if not urls:
        raise ConfigError("no OpenSearch to send rows to: set DATALAKE_OPENSEARCH_URL, like 'https://search1:9200'")
    for each in urls:
        try:
            parts = urlsplit(each)
            is_url = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        except ValueError:  # brackets that are no address, a port that is no number
            is_url = False
        if not is_url or parts.username or parts.password:
            raise ConfigError(
                "DATALAKE_OPENSEARCH_URL: write http(s)://host:port; user and password are settings of their own"
            )
    return urls


def connect(lake: Store, feed: Feed, sink: OpenSearchSink, settings: OpenSearchSettings) -> DocumentStore:
    """The indices of a feed, by an installation's settings.

    Raises:
        ConfigError: They name no cluster, or cannot work.
    """
    urls = _urls(settings)
    options: dict[str, Any] = {"timeout": settings.opensearch_timeout_s, "max_retries": 0, "http_compress": True}
    options["connection_class"] = _Connection
    if settings.opensearch_api_key is not None:
        options["headers"] = {"Authorization": f"ApiKey {settings.opensearch_api_key.get_secret_value()}"}
    elif settings.opensearch_user:
        password = settings.opensearch_password
        options["http_auth"] = (settings.opensearch_user, password.get_secret_value() if password else "")
    authorities = settings.opensearch_ca_file or route_to(urls[0]).authorities
    if authorities:
        options["ca_certs"] = authorities
    return OpenSearchStore(lake.uri, feed, sink, settings, OpenSearch(urls, **options))
