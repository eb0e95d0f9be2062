"""The package can be held in the head: no modules in a circle, no file name twice."""

from __future__ import annotations

import re

import pytest

from datalake_assets_tests.structure import cycle, naming, read_modules, repeated_names, with_one_importer

# the package is parsed once, and not by each worker
pytestmark = pytest.mark.xdist_group("structure")

#: Why a module that a single other one imports stands by itself.
REASONS = {
    "engines.worker": "what runs on workers, where nothing of an engine's own package may be needed",
    "defs.upkeep.mart_sensor": "a sensor, which the location puts together",
    "defs.upkeep.new_items": "likewise",
    "lake.marts.mart_lineage": "a picture for people, by a package that need not be there",
    "lake.marts.mart_table": "a table; the registry of tables alone knows which there are",
    "sinks.delivered": "how far a sink has got: a small file of its own, apart from what is sent",
    "sinks.row_documents": "how rows become documents and get ids, apart from which are sent",
    "sinks.courier": "deliveries beside a process that lands; the command that does knows the command line",
    "sinks.webhook.alerts": "which alerts go where; the declaration is read wherever feeds are",
    "sinks.opensearch.index_template": "types of fields; changes with them",
    "cli.deliver": "a command; the worker delivers beside what it lands",
    "defs.upkeep.sink_delivery": "a sensor and its job, which the location puts together",
    "sinks.kinds": "the list of sinks, found by name as that of sources is",
    "sources.kafka.avro_values": "Avro's types; changes with them",
    "sources.kafka.protobuf_values": "Protobuf's types; changes with them",
    "sources.kafka.schema_registry": "what a registry says; topics without one do not load it",
    "sources.kafka.topic_reading": "one read; the source around it lists, checks and connects",
    "sources.kinesis.aggregated_records": "the Kinesis Producer Library's format; changes with it",
    "sources.kinesis.shard_reading": "one read; the source around it lists, checks and connects",
    "sources.marts.mart_declaration": "a source's declaration; the list of sources alone knows which there are",
    "sources.dlt.extraction": "dlt itself, which runs and keeps a state; the source knows the lake's side of it",
    "sources.sql.cursor_numbers": "what numbers mean, whatever the database; a read knows which it wants",
    "sources.sql.postgresql": "what one driver and its database can do; the source knows what all can",
    "sources.sql.sqlalchemy_database": "the same of another driver, which is optional",
    "sources.sql.sqlite": "the same of the standard library's",
    "sources.files.drop_watch": "what a look lists, apart from which of it is new",
    "lake.item_replay": "how rows of items leave quarantine; loaded by name, as the exports of items are",
    "sources.files.lake_rows": "what a feed makes of records; the source knows which files, and when",
    "sources.files.scanned_values": "what the scanner says and is sure of; changes with it, and all else goes without",
    "lake.item_replacing": "how rows leave files: exports decide which, and know no Parquet",
    "demo.demo_feeds": "what the demo lands, apart from what its server serves",
    "cli.feed_options": "which options sources offer, and the feed that they describe",
    "cli.live": "a command; `run` shows the same page of what it lands",
    "cli.run": "a command; the live demo goes on as it does",
    "cli.report": "a command; the demo shows it at its end",
    "lake.deleted_keys": "what a merge has to remember, apart from how it writes rows anew",
    "lake.merge_export": "loaded by name where a feed is merged: most exports merge nothing",
    "continuous.micro_batches": "when a batch is over, by rows and time; who follows knows sources and lakes",
    "defs.feeds.follow_job": "a job and what it tells Dagster; `build` knows only that there is one",
    "sources.ksqldb.pace": "when an endless read is over, apart from what it reads",
    "lake.look": "a pass that writes nothing, beside those that do",
    "live.board": "what is shown, apart from how it is sent",
    "live.page_server": "loaded by name where a page is shown: it brings a web server, which need not be installed",
    "live.questions": "what SQL is asked, apart from what else is shown",
    "live.tailing": "loaded by name where sources are read and nothing is landed",
    "live.chunks": "rows with what became of them, apart from which are kept",
    "catalog.glue": "a catalog; the list of catalogs alone knows which there are",
    "catalog.metastore": "a catalog, and statements that are printed: for whoever has the session",
    "lake.iceberg.bounded_hive": "it needs Thrift, which only those have who have a Hive catalog",
    "core.manifest_bytes": "how a manifest becomes the bytes that it always had, apart from what it says",
    "lake.adopted.kernel_footers": "what the native kernel can say of files, which Arrow can say of all of them",
    "core.compaction.packing": "which files go together, apart from when and why: table-driven tests of its own",
    "defs.duckdb_views": "public, loaded by name: it brings DuckDB",
    "defs.s3_lake": "public, loaded by name: it brings dagster-aws",
    "defs.projects": "public, loaded by name: for other people's projects",
    "defs.upkeep.catalog_flow": "a subject of the location, which puts it together",
    "defs.upkeep.sensors": "likewise: what keeps an installation in order",
    "defs.upkeep.notify_sensor": "a subject of the location, which puts it together",
    "demo.keeper": "run by path in a bare interpreter",
    "lake.adopted.adopted_delta": "a table, likewise; loaded by name: it brings deltalake",
    "lake.adopted.adopted_table": "a table; the registry of tables alone knows which there are",
    "lake.adopted.delta_look": "what a Delta table's log says, apart from what is done to the table",
    "lake.conversion": "one form of a feed to another; the tables know nothing of it",
    "lake.iceberg.adopted_iceberg": "a table, likewise; loaded by name: it brings pyiceberg",
    "lake.iceberg.iceberg_look": "what the newest snapshot says, apart from what is done to the table",
    "lake.iceberg.iceberg_rewriting": "files in, files out: commits nothing",
    "lake.iceberg.iceberg_table": "a table, likewise; loaded by name: it brings pyiceberg",
    "lake.iceberg.tenant_tables": "whose a table of the write API is, in a catalog of its own or a shared one",
    "lake.pruning": "what a reader may leave out by bounds, apart from how files are read",
    "lake.row_conditions": "a condition and its tree, apart from the files whose rows it decides on",
    "lake.shown_rows": "loaded by name where a dataset is shown: it brings pandas by way of Arrow",
    "lake.summary": "what people read of a feed, whatever its table; rebuilt, and never the truth",
    "lake.kept_files": "what outlives a query of what it opened; no part of how its process asks for files",
    "lake.store.local": "a store",
    "lake.store.s3": "a store",
    "lake.store.s3_uploads": "multipart uploads, which stay invisible until they are completed",
    "lake.store.uncached": "how large files pass the page cache, by what each system can; tests of its own",
    "operations.admission": "whether a document is a request; no tables, no files",
    "operations.http_api": "one of the ways to the dispatcher: brings Starlette",
    "operations.validation": "records held against columns: pure, with table-driven tests",
    "parquet.joined_footers": "what Arrow is asked of many footers at once; knows nothing of merging",
    "parquet.key_documents": "how blocks of JSON in footers are compared; a rule per writer",
    "parquet.native.interface": "the C header's structs: changes with it and nothing else does",
    "parquet.segment_queue": "the order in which threads make row groups",
    "parquet.page_bounds": "whether a column index can be true: table-driven tests of its own",
    "parquet.page_selection": "pages by their bytes and indices, which know nothing of queries",
    "report.documents": "CSV and JSON, beside the page",
    "report.metrics": "for Prometheus and CloudWatch, beside the page",
    "report.thumbnails": "small pictures for Dagster's UI",
    "sources.ksqldb.decode.flat": "the fast way for rows without nesting",
    "sources.ksqldb.decode.response": "the framing of answers, apart from their rows",
    "sources.sqs.given_messages": "messages that a Lambda function is given; exports receive theirs",
    "sources.reads_ahead": "threads, and what is held between them; only commands begin reads before their turn",
    "sources.ksqldb.reading": "when a read is at its end; the largest subject of the source",
    "testing.stores": "a suite that every store runs; that of staged files looks at a store as it does",
}


@pytest.fixture(scope="module")
def modules():
    return read_modules()


def test_modules_do_not_import_each_other_in_a_circle(modules):
    assert cycle(modules) == []


def test_no_file_name_stands_in_two_folders(modules):
    assert repeated_names(modules) == {}


def test_only_sources_and_the_demo_name_a_system_that_rows_come_from(modules):
    """Another source is a folder and a line in `sources.systems`; ``serve`` runs the demo's server."""
    assert naming(modules, "ksql") == []


def test_only_the_list_of_sources_knows_which_there_are(modules):
    declaration = "datalake_assets.sources.ksqldb.declaration"
    importers = {name for name, module in modules.items() if declaration in module.imports}
    outside = {name for name in importers if not name.startswith("datalake_assets.sources.ksqldb")}
    assert outside == {
        "datalake_assets.sources.systems",
        "datalake_assets.demo.demo_feeds",
        "datalake_assets.demo.demo_lake",
    }


TABLES = {
    "datalake_assets.lake.adopted.adopted_delta",
    "datalake_assets.lake.adopted.adopted_table",
    "datalake_assets.lake.adopted.logged_table",
    "datalake_assets.lake.adopted.table_of_others",
    "datalake_assets.lake.asset_table",
    "datalake_assets.lake.hive",
    "datalake_assets.lake.iceberg.adopted_iceberg",
    "datalake_assets.lake.iceberg.iceberg_table",
    "datalake_assets.lake.marts.mart_table",
}


def test_only_the_registry_of_tables_knows_which_there_are(modules):
    """Another format is a module and a line in there; the tables themselves build on each other."""
    importers = {name for name, module in modules.items() if module.imports & TABLES} - TABLES
    assert importers == {"datalake_assets.lake.tables"}


def test_whether_a_folder_was_adopted_is_asked_of_the_feed_or_the_table(modules):
    """Whoever declares such a feed names the kind; nobody else compares kinds."""
    naming = {name for name, module in modules.items() if "FeedKind.FOLDER" in module.path.read_text()}
    assert naming == {
        "datalake_assets.feed_sources",
        "datalake_assets.feed",
        "datalake_assets.defs.storage.asset_feeds",
    }


#: What a table of files is made of: whatever else names one of these cannot work with another format.
FILES_TABLE = re.compile(
    r"\b(FeedFolder|PartitionLog|StateLog|FeedState|Manifest|Holdings|HiveTable|HiveSnapshot|AdoptedTable|AssetTable)\b"
)
#: The tables of files themselves; everybody else asks them by their roles.
OF_FILES = (
    "datalake_assets.core.feed_state",
    "datalake_assets.core.manifest",
    "datalake_assets.lake.adopted.",
    "datalake_assets.lake.asset_table",
    "datalake_assets.lake.avro_twins",
    "datalake_assets.lake.commit",
    "datalake_assets.lake.compaction",
    "datalake_assets.lake.compaction_inputs",
    "datalake_assets.lake.compaction_plans",
    "datalake_assets.lake.compaction_rehearsal",
    "datalake_assets.lake.deleted_keys",
    "datalake_assets.lake.conversion",
    "datalake_assets.lake.deletion",
    "datalake_assets.lake.export_commits",
    "datalake_assets.lake.export_kinds",
    "datalake_assets.lake.hive",
    "datalake_assets.lake.hive_snapshot",
    "datalake_assets.lake.iceberg.iceberg_commits",
    "datalake_assets.lake.iceberg.iceberg_folder",
    "datalake_assets.lake.iceberg.iceberg_table",
    "datalake_assets.lake.marts.mart_table",
    "datalake_assets.lake.iceberg.iceberg_views",
    "datalake_assets.lake.inspection",
    "datalake_assets.lake.item_exports",
    "datalake_assets.lake.item_ledger",
    "datalake_assets.lake.item_replacing",
    "datalake_assets.lake.item_replay",
    "datalake_assets.lake.layout",
    "datalake_assets.lake.manifest_figures",
    "datalake_assets.lake.merge_export",
    "datalake_assets.lake.replay",
    "datalake_assets.lake.scan",
    "datalake_assets.lake.sealed_items",
    "datalake_assets.lake.table_versions",
    "datalake_assets.lake.tables",
)


def test_nobody_goes_below_the_table(modules):
    """Manifests and states are a table's own; another format has none."""
    found = {name for name, module in modules.items() if FILES_TABLE.search(module.path.read_text())}
    assert {
        name for name in found if not f"{name}.".startswith(tuple(f"{each.rstrip('.')}." for each in OF_FILES))
    } == set()


def test_each_module_that_only_one_other_imports_has_a_reason(modules):
    """It would belong into that one otherwise. The embedded server is a program of its own."""
    found = {name.removeprefix("datalake_assets.") for name in with_one_importer(modules)}
    assert {name for name in found if not name.startswith("demo.ksqldb_server")} == REASONS.keys()
