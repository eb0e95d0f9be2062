"""Resources of dlt as feeds: what is extracted lands once, and the state goes on with the rows, never before them."""

from __future__ import annotations

import gc
import json
import warnings
from datetime import UTC, datetime

import pytest

from datalake_assets.errors import ConfigError, InvalidFeed, LakeUnavailable, SchemaChanged, SourceError, SourceRefused
from datalake_assets.feed import parse_feed
from datalake_assets.lake.item_exports import ItemsExport
from datalake_assets.lake.item_ledger import ItemLedger
from datalake_assets.lake.store import open_store
from datalake_assets.lake.tables import open_table
from datalake_assets.settings import load_settings
from datalake_assets.sources.dlt.dlt_source import connect
from datalake_assets_tests.sources.dlt.paging_api import PagingApi
from datalake_assets_tests.sources.sql.landing import land, landed, quarantine

#: dlt keeps the connections of its sessions until these are collected.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
MODULE = "datalake_assets_tests.sources.dlt.paged_resources"


@pytest.fixture(autouse=True)
def _haste(monkeypatch):
    monkeypatch.setenv("RUNTIME__REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("RUNTIME__DLTHUB_TELEMETRY", "false")


@pytest.fixture(autouse=True, scope="module")
def _sessions():
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def api():
    with PagingApi() as api:
        yield api


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


@pytest.fixture
def source():
    return connect(load_settings(dlt_modules=MODULE))


def feed_of(name="events", url="", *, kind="stream", schema_policy="freeze", **source):
    document = {"type": "dlt", "factory": f"{MODULE}:{name}", **({"arguments": {"url": url}} if url else {}), **source}
    own = {"time_column": "at"} if kind == "stream" else {}
    return parse_feed(
        json.dumps({"name": "f", "kind": kind, "source": document, "schema_policy": schema_policy, **own})
    )


TYPES = {"columns": {"at": "timestamptz"}}


def test_an_api_that_pages_and_is_busy_lands_once_and_is_read_on(api, store, source):
    feed = feed_of(url=api.url, **TYPES)
    api.grow(120)
    assert land(store, source, feed).rows_read == 120
    assert land(store, source, feed).rows_read == 0
    api.grow(7)

    assert land(store, source, feed).rows_read == 7

    assert sorted(landed(store, feed, "id")) == list(range(1, 128))
    assert landed(store, feed, "at")[0].tzinfo is not None
    assert json.loads(landed(store, feed, "tags")[0])["n"]


def test_a_state_of_any_kind_goes_on_and_rows_that_are_alike_all_land(store, source):
    feed = feed_of("counted", "same", **TYPES)
    for _ in range(2):
        land(store, source, feed)
    assert landed(store, feed, "run") == [1] * 6
    feed = feed_of("counted", "x", **TYPES).model_copy(update={"name": "g"})
    for _ in range(2):
        land(store, source, feed)
    assert sorted(landed(store, feed, "run")) == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("step", ["begin", "end", "commit"])
def test_an_export_that_dies_is_repeated_from_the_same_state(api, store, source, monkeypatch, step):
    """Between two partitions, before the first, after the last: each time the state is the one before."""
    feed = feed_of(url=api.url, **TYPES)
    api.grow(60)
    land(store, source, feed)
    api.grow(30)
    owner = ItemsExport if step == "commit" else ItemLedger
    name = "commit_all" if step == "commit" else step
    real = getattr(owner, name)

    def dies(self, *given, **named):
        if step == "commit":
            first = dict([next(iter(given[0].items()))])
            real(self, first)
        raise LakeUnavailable("lake", "gone")

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dies)
        with pytest.raises(LakeUnavailable):
            land(store, source, feed)
    api.grow(5)

    assert land(store, source, feed).rows_read == 35
    assert sorted(landed(store, feed, "id")) == list(range(1, 96))
    assert land(store, source, feed).rows_read == 0


def test_two_exports_at_once_land_each_row_once(api, store, source):
    feed = feed_of(url=api.url, **TYPES)
    api.grow(60)
    slow, fast = open_table(store, feed), open_table(store, feed)
    plan = slow.plan()
    batches = source.read(feed, plan.request)
    _ = batches.schema  # it has extracted
    api.grow(30)
    land(store, source, feed)
    assert fast.report("2025-01-02") is not None

    slow.write(batches, partitions=plan.partitions, run_id="slow")

    assert sorted(landed(store, feed, "id")) == list(range(1, 91))
    assert land(store, source, feed).rows_read == 0


def test_a_table_is_extracted_whole_each_time(api, store, source):
    feed = feed_of(url=api.url, kind="table")
    api.grow(3)
    for _ in range(2):
        assert land(store, source, feed).rows_read == 3
    assert landed(store, feed, "at")[0].startswith("2025")


def test_values_of_several_types_are_refused_by_name_and_quarantined_once_it_is_declared(store, source):
    with pytest.raises(SourceRefused, match="column 'mixed' has values of several types: int, str"):
        land(store, source, feed_of("plain", kind="table"))
    feed = feed_of("plain", kind="table", columns={"mixed": "string"})
    land(store, source, feed)
    assert landed(store, feed, "mixed") == ["x"]
    assert len(quarantine(store, feed)) == 1


def test_what_fails_lands_nothing_and_shows_no_key(store, source):
    with pytest.raises(SourceError, match="ValueError: cannot read") as caught:
        land(store, source, feed_of("broken", "http://u:s3cret@h/", **TYPES))
    assert "s3cret" not in str(caught.value)
    with pytest.raises(SourceError, match="429"), PagingApi(busy_every=1) as api:
        land(store, source, feed_of(url=api.url, **TYPES))
    assert not list(store.list("streams/f"))


@pytest.mark.parametrize(
    ("factory", "error", "reason"),
    [
        ("os:system", ConfigError, r"feeds may not name 'os'; allow it by DATALAKE_DLT_MODULES"),
        (f"{MODULE}x:plain", ConfigError, "may not name"),
        (f"{MODULE}:nothing", SourceRefused, "cannot be made"),
        (f"{MODULE}:nobody", SourceRefused, "no resource of dlt"),
    ],
)
def test_what_is_no_resource_is_refused(source, factory, error, reason):
    feed = parse_feed(json.dumps({"name": "f", "kind": "table", "source": {"type": "dlt", "factory": factory}}))
    with pytest.raises(error, match=reason):
        source.check(feed)


def test_a_time_that_is_text_is_refused_until_its_type_is_declared(api, store, source):
    api.grow(1)
    with pytest.raises(InvalidFeed, match="'at' is string; say its type: --column-type at=timestamptz"):
        land(store, source, feed_of(url=api.url))
    land(store, source, feed_of(url=api.url, **TYPES))
    assert landed(store, feed_of(url=api.url, **TYPES), "at") == [datetime(2025, 2, 2, tzinfo=UTC)]


def test_a_column_that_has_no_value_yet_gets_its_type_by_the_first_one(store, source):
    feed = feed_of("late", **TYPES)
    land(store, source, feed)
    with pytest.raises(SchemaChanged, match="added price double"):
        land(store, source, feed)
    feed = feed_of("late", schema_policy="evolve", **TYPES)
    land(store, source, feed)
    assert (landed(store, feed, "price"), quarantine(store, feed)) == ([None, 1.5], [])


def test_values_land_as_they_are_also_where_json_has_no_place_for_them(store, source):
    feed = feed_of("odd", kind="table")

    report = land(store, source, feed)

    assert (report.rows_added, report.rows_quarantined) == (2, 1)  # a text that is none in UTF-8 holds up nobody
    assert landed(store, feed, "number") == [float("inf"), float("-inf")]
    assert landed(store, feed, "large") == [2**70, -(2**65)]
    assert landed(store, feed, "text") == ["\uf0261.5", "\uf0272024-01-01"]
    assert json.loads(landed(store, feed, "nested")[0]) == {"n": 2**70}


def test_no_time_loses_its_nanoseconds(store, source):
    feed = feed_of("fine", **TYPES)
    land(store, source, feed)
    assert [at.microsecond for at in landed(store, feed, "at")] == [0, 1]
    assert [text[-9:] for text in landed(store, feed, "seen")] == ["001+00:00", "002+00:00"]
